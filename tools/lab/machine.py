"""The lab as data: QEMU's arguments, the kernel's command line, the initramfs. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from microvm_guest.image.cpio import Entry, File, Symlink, archive
from tools.lab import hold_vm

HERE = Path(__file__).parent

MODULES = (
    "virtio_pci",
    "virtio_console",  # the command's stdout and stderr
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm_amd",
    "tun",
    "veth",  # joins the namespace of a VPN server to the lab
)
"""What the lab loads, with what these depend on."""

APPLETS = ("cp", "insmod", "mkdir", "mount", "poweroff", "sleep", "switch_root")
"""What first.sh calls by name. For busybox to link all it can do takes a quarter of a second."""

KERNEL_WORDS = (
    "console=ttyS0",
    "panic=-1",  # reboot at once, which ends QEMU
    "mitigations=off",  # there is nobody to guard against
    # The host's, by way of QEMU, and the same on every vCPU: the watchdog would find emulation's
    # jitter and go over to a clock that costs an exit. KVM gives guests a stable kvmclock only
    # while its own clock is the TSC.
    "clocksource=tsc",
    "tsc=reliable",
    # A tick that comes whether or not the last one was heard. Entering a nested guest, QEMU changes
    # its word of pending interrupts without a lock while another thread sets a bit of it, and now
    # and then one is lost. A timer set for one shot would never come again: seen as a lab that
    # stood still, its timer's vector waiting in the local APIC's IRR. These put the timer in
    # periodic mode.
    "nohz=off",
    "highres=off",
    "random.trust_cpu=on",
    "norandmaps",
)

_KEPT = re.compile(
    r"PATH|HOME|LANG|VIRTUAL_ENV|XDG_CACHE_HOME|(PYTHON|MICROVM_|HYPOTHESIS_|LC_)\w*"
)


@attrs.frozen(kw_only=True)
class Machine:
    """How large the lab is, and what of the host can be written from it."""

    cpus: int
    mem_mib: int
    out: Path | None
    """A folder, absolute; at the same path inside."""
    talks: bool = False
    """Whether the kernel says on its console what it does: some 300 lines, byte by byte."""


def environment(environ: Mapping[str, str], out: Path | None) -> dict[str, str]:
    """The variables that a command gets in the lab."""
    kept = {name: value for name, value in environ.items() if _KEPT.fullmatch(name)}
    ours = {"MICROVM_LAB": "1", "TMPDIR": "/run/tmp"}
    if out is not None:
        ours["MICROVM_LAB_OUT"] = str(out)
    return {**kept, **ours}


def command_script(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: str, out: Path | None, token: str
) -> str:
    """The end of the lab's init: run the command, and close both streams with its exit code.

    The environment is the command's alone: busybox, as the shell, keeps its own.
    """
    variables = [f"{name}={value}" for name, value in env.items()]
    quoted_out = shlex.quote(str(out))
    mount = f"$busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 out {quoted_out}"
    lines = [
        *([f'{mount} || die "mounting the folder to write to"'] if out is not None else []),
        f"cd {shlex.quote(cwd)} || die 'changing to the working directory'",
        "exec >/dev/vport0p1 2>/dev/vport0p2",
        f"$busybox env -i {shlex.join([*variables, *argv])} </dev/null",
        "code=$?",
        "$busybox sync",
        f'printf "\\000lab {token} %d\\n" $code',
        f'printf "\\000lab {token} %d\\n" $code >&2',
        "$busybox sleep 60",
        "$busybox poweroff -f",
    ]
    return "\n".join(lines) + "\n"


def initramfs(busybox: bytes, modules: Mapping[str, bytes], command: str) -> bytes:
    """The archive that the kernel unpacks: busybox, the modules in their order, the scripts."""
    entries: list[Entry] = [
        File("bin/busybox", busybox, mode=0o755),
        *(Symlink(f"bin/{applet}", "busybox") for applet in APPLETS),
        File("init", b"#!/bin/busybox sh\n" + (HERE / "first.sh").read_bytes(), mode=0o755),
        File("second.sh", (HERE / "second.sh").read_bytes()),
        File("hold-vm", hold_vm.program(), mode=0o755),
        File("command.sh", command.encode(errors="surrogateescape")),
    ]
    for number, (name, module) in enumerate(modules.items()):
        entries.append(File(f"modules/{number:02}-{name}", module))
    return archive(entries)


def qemu_argv(
    machine: Machine, *, kernel: Path, initrd: str, descriptors: Mapping[str, int]
) -> list[str]:
    """QEMU's program and arguments.

    Args:
        machine: What to make.
        kernel: The kernel's file.
        initrd: The initramfs' path, as QEMU will find it.
        descriptors: Pipes that QEMU inherits and writes to: the kernel's ``console``, the
            command's stdout and stderr (``out``, ``err``).
    """
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"]
    argv += ["-display", "none", "-machine", "pc"]
    # multi: a host thread for each vCPU. The cache of translated code is an eighth of memory
    # unless told, and a full one is thrown away whole.
    argv += ["-accel", "tcg,thread=multi,tb-size=512"]
    # max: everything that is emulated, SVM with nested paging among it. No fifth level of page
    # tables: each is walked in software, and twice for a nested guest.
    argv += ["-cpu", "max,la57=off", "-smp", str(machine.cpus), "-m", str(machine.mem_mib)]
    words = KERNEL_WORDS if machine.talks else (*KERNEL_WORDS, "quiet", "loglevel=1")
    argv += ["-kernel", str(kernel), "-initrd", initrd, "-append", " ".join(words)]
    argv += [
        "-chardev",
        f"file,id=console,path=/dev/fd/{descriptors['console']}",
        "-serial",
        "chardev:console",
    ]
    argv += ["-device", "virtio-serial-pci"]
    for name in ("out", "err"):
        argv += ["-chardev", f"file,id={name},path=/dev/fd/{descriptors[name]}"]
        argv += ["-device", f"virtserialport,chardev={name},name={name}"]
    argv += ["-virtfs", _shared("/", "host") + ",readonly=on"]
    if machine.out is not None:
        argv += ["-virtfs", _shared(str(machine.out), "out")]
    return argv


def _shared(path: str, tag: str) -> str:
    # remap: files of several host file systems have one space of inode numbers in the lab.
    escaped = path.replace(",", ",,")
    return f"local,path={escaped},mount_tag={tag},security_model=none,multidevs=remap"
