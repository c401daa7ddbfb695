"""The declarations against what a C compiler says of the kernel's headers. On any system."""

import re
import sys
from pathlib import Path

import pytest

import microvm_kvm
from microvm_kvm._abi import build, constants, ffi, ioctls

# Measured on x86_64 with gcc on Debian 12's <linux/kvm.h>.
IOCTLS = {
    "KVM_GET_API_VERSION": 0xAE00,
    "KVM_CREATE_VM": 0xAE01,
    "KVM_GET_MSR_INDEX_LIST": 0xC004AE02,
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_SET_TSS_ADDR": 0xAE47,
    "KVM_CREATE_IRQCHIP": 0xAE60,
    "KVM_IRQFD": 0x4020AE76,
    "KVM_CREATE_PIT2": 0x4040AE77,
    "KVM_IOEVENTFD": 0x4040AE79,
    "KVM_RUN": 0xAE80,
    "KVM_GET_REGS": 0x8090AE81,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_GET_SREGS": 0x8138AE83,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_TRANSLATE": 0xC018AE85,
    "KVM_SET_MSRS": 0x4008AE89,
    "KVM_SET_SIGNAL_MASK": 0x4004AE8B,
    "KVM_SET_FPU": 0x41A0AE8D,
    "KVM_GET_LAPIC": 0x8400AE8E,
    "KVM_SET_LAPIC": 0x4400AE8F,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_GET_MP_STATE": 0x8004AE98,
    "KVM_KVMCLOCK_CTRL": 0xAEAD,
}
SIZES = {
    "kvm_userspace_memory_region": 32,
    "kvm_pit_config": 64,
    "kvm_irqfd": 32,
    "kvm_ioeventfd": 64,
    "kvm_translation": 24,
    "kvm_mp_state": 4,
    "kvm_signal_mask": 4,
    "kvm_regs": 144,
    "kvm_segment": 24,
    "kvm_dtable": 16,
    "kvm_sregs": 312,
    "kvm_fpu": 416,
    "kvm_lapic_state": 1024,
    "kvm_cpuid_entry2": 40,
    "kvm_cpuid2": 8,
    "kvm_msr_entry": 16,
    "kvm_msrs": 8,
    "kvm_msr_list": 4,
}
OFFSETS = {
    ("kvm_run", "immediate_exit"): 1,
    ("kvm_run", "exit_reason"): 8,
    ("kvm_run", "io", "direction"): 32,
    ("kvm_run", "io", "size"): 33,
    ("kvm_run", "io", "port"): 34,
    ("kvm_run", "io", "count"): 36,
    ("kvm_run", "io", "data_offset"): 40,
    ("kvm_run", "mmio", "phys_addr"): 32,
    ("kvm_run", "mmio", "data"): 40,
    ("kvm_run", "mmio", "len"): 48,
    ("kvm_run", "mmio", "is_write"): 52,
    ("kvm_run", "hw", "hardware_exit_reason"): 32,
    ("kvm_run", "fail_entry", "hardware_entry_failure_reason"): 32,
    ("kvm_run", "internal", "suberror"): 32,
    ("kvm_run", "internal", "ndata"): 36,
    ("kvm_run", "internal", "data"): 40,
    ("kvm_run", "emulation_failure", "flags"): 40,
    ("kvm_run", "emulation_failure", "insn_size"): 48,
    ("kvm_run", "emulation_failure", "insn_bytes"): 49,
    ("kvm_run", "system_event", "type"): 32,
    ("kvm_run", "system_event", "ndata"): 36,
    ("kvm_run", "system_event", "data"): 40,
    ("kvm_ioeventfd", "datamatch"): 0,
    ("kvm_ioeventfd", "addr"): 8,
    ("kvm_ioeventfd", "len"): 16,
    ("kvm_ioeventfd", "fd"): 20,
    ("kvm_ioeventfd", "flags"): 24,
    ("kvm_irqfd", "gsi"): 4,
    ("kvm_userspace_memory_region", "guest_phys_addr"): 8,
    ("kvm_userspace_memory_region", "memory_size"): 16,
    ("kvm_userspace_memory_region", "userspace_addr"): 24,
    ("kvm_regs", "rip"): 128,
    ("kvm_regs", "rflags"): 136,
    ("kvm_segment", "limit"): 8,
    ("kvm_segment", "selector"): 12,
    ("kvm_segment", "type"): 14,
    ("kvm_segment", "present"): 15,
    ("kvm_segment", "unusable"): 22,
    ("kvm_sregs", "gdt"): 192,
    ("kvm_sregs", "cr0"): 224,
    ("kvm_sregs", "efer"): 264,
    ("kvm_sregs", "apic_base"): 272,
    ("kvm_fpu", "fcw"): 128,
    ("kvm_fpu", "mxcsr"): 408,
    ("kvm_translation", "physical_address"): 8,
    ("kvm_translation", "valid"): 16,
}
HEADER = Path("/usr/include/linux/kvm.h")


def test_every_request_has_the_number_that_the_header_gives_it() -> None:
    assert {name: value for value, name in ioctls.NAMES.items()} == IOCTLS


@pytest.mark.parametrize("name", SIZES)
def test_structures_have_the_size_that_the_kernel_takes_them_to_have(name: str) -> None:
    assert ffi.sizeof(f"struct {name}") == SIZES[name]


@pytest.mark.parametrize("path", OFFSETS, ids=".".join)
def test_fields_lie_where_the_kernel_looks_for_them(path: tuple[str, ...]) -> None:
    name, *fields = path
    assert ffi.offsetof(f"struct {name}", *fields) == OFFSETS[path]


def test_the_offsets_that_exits_are_read_by_are_the_declarations() -> None:
    run = "struct kvm_run"
    assert ffi.offsetof(run, "exit_reason") == constants.RUN_EXIT_REASON
    assert ffi.offsetof(run, "io") == ffi.offsetof(run, "mmio") == constants.RUN_EXIT
    assert ffi.offsetof(run, "mmio", "data") == constants.RUN_MMIO_DATA
    assert ffi.offsetof(run, "internal", "data") == constants.RUN_DATA
    assert ffi.offsetof(run, "system_event", "data") == constants.RUN_DATA
    assert ffi.offsetof(run, "emulation_failure", "flags") == constants.RUN_EMULATION_FLAGS
    assert ffi.offsetof(run, "emulation_failure", "insn_size") == constants.RUN_EMULATION_INSN_SIZE
    assert (
        ffi.offsetof(run, "emulation_failure", "insn_bytes") == constants.RUN_EMULATION_INSN_BYTES
    )


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers here")
def test_constants_are_those_of_the_header_under_their_names() -> None:
    text = HEADER.read_text()
    ours = {name: value for name, value in vars(constants).items() if name.startswith("KVM_")}
    found = {}
    for name, value in re.findall(r"^#\s*define (KVM_\w+)\s+([^/\n]+)", text, re.MULTILINE):
        if name in ours and re.fullmatch(r"[\d\s()<ULx]+", value.strip()):
            found[name] = eval(re.sub(r"(\d)U?LL?", r"\1", value))
    assert {name: ours[name] for name in found} == found
    # Those that the header has as an enumeration, or that stand in <asm/kvm.h>.
    assert ours.keys() - found.keys() == {
        "KVM_CPUID_FLAG_SIGNIFCANT_INDEX",
        "KVM_IOEVENTFD_FLAG_DATAMATCH",
    }


def test_every_constant_is_used() -> None:
    package = Path(microvm_kvm.__file__).parent
    others = [path for path in package.rglob("*.py") if path.name != "constants.py"]
    words = set(re.findall(r"\w+", "\n".join(path.read_text() for path in others)))
    assert [name for name in vars(constants) if name[:4] in ("KVM_", "RUN_")] != []
    assert [n for n in vars(constants) if n[:4] in ("KVM_", "RUN_") and n not in words] == []


def test_the_generated_file_is_what_the_declarations_make() -> None:
    pytest.importorskip("pycparser")
    assert build.TARGET.read_text() == build.generate(), "run: nox -s abi"


def test_a_file_that_is_out_of_date_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycparser")
    monkeypatch.setattr(build, "TARGET", tmp_path / "_generated.py")
    assert build.main(["--check"]) == 1
    assert "nox -s abi" in capsys.readouterr().err
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0


def test_importing_the_plugin_brings_neither_cffi_nor_the_rest(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import microvm_kvm.plugin as p, sys; p.microvm_register_backend();"
        "print(sorted(m for m in sys.modules if m in ('_cffi_backend', 'trio') or"
        " m.startswith('microvm_kvm.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['microvm_kvm.plugin']"


def test_every_ioctl_goes_through_one_function() -> None:
    package = Path(microvm_kvm.__file__).parent
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\.dlopen\(|import fcntl|import ctypes", path.read_text())
    }
    assert users == {"_abi/calls.py"}
