"""The requests of KVM under their header's names, computed as <asm-generic/ioctl.h> does it.

A request's number holds the size of the structure it takes, so a wrong declaration in `build.py`
gives a number that the kernel refuses (ENOTTY) rather than a call that overruns memory.
"""

from __future__ import annotations

from typing import Final

from microvm_kvm._abi._generated import ffi

_NONE, _WRITE, _READ = 0, 1, 2
_KVMIO = 0xAE


def _ioc(direction: int, kind: int, number: int, size: int) -> int:
    """_IOC: two bits of direction as the caller sees it, 14 of size, 8 of kind, 8 of number."""
    return direction << 30 | size << 16 | kind << 8 | number


def _io(number: int) -> int:
    return _ioc(_NONE, _KVMIO, number, 0)


def _ior(number: int, struct: str) -> int:
    return _ioc(_READ, _KVMIO, number, ffi.sizeof(f"struct {struct}"))


def _iow(number: int, struct: str) -> int:
    return _ioc(_WRITE, _KVMIO, number, ffi.sizeof(f"struct {struct}"))


def _iowr(number: int, struct: str) -> int:
    return _ioc(_READ | _WRITE, _KVMIO, number, ffi.sizeof(f"struct {struct}"))


# On /dev/kvm.
KVM_GET_API_VERSION: Final = _io(0x00)
KVM_CREATE_VM: Final = _io(0x01)
KVM_GET_MSR_INDEX_LIST: Final = _iowr(0x02, "kvm_msr_list")
KVM_CHECK_EXTENSION: Final = _io(0x03)
KVM_GET_VCPU_MMAP_SIZE: Final = _io(0x04)
KVM_GET_SUPPORTED_CPUID: Final = _iowr(0x05, "kvm_cpuid2")

# On a VM.
KVM_CREATE_VCPU: Final = _io(0x41)
KVM_SET_USER_MEMORY_REGION: Final = _iow(0x46, "kvm_userspace_memory_region")
KVM_SET_TSS_ADDR: Final = _io(0x47)
KVM_CREATE_IRQCHIP: Final = _io(0x60)
KVM_IRQFD: Final = _iow(0x76, "kvm_irqfd")
KVM_CREATE_PIT2: Final = _iow(0x77, "kvm_pit_config")
KVM_IOEVENTFD: Final = _iow(0x79, "kvm_ioeventfd")

# On a vCPU.
KVM_RUN: Final = _io(0x80)
KVM_GET_REGS: Final = _ior(0x81, "kvm_regs")
KVM_SET_REGS: Final = _iow(0x82, "kvm_regs")
KVM_GET_SREGS: Final = _ior(0x83, "kvm_sregs")
KVM_SET_SREGS: Final = _iow(0x84, "kvm_sregs")
KVM_TRANSLATE: Final = _iowr(0x85, "kvm_translation")
KVM_SET_MSRS: Final = _iow(0x89, "kvm_msrs")
KVM_SET_SIGNAL_MASK: Final = _iow(0x8B, "kvm_signal_mask")
KVM_SET_FPU: Final = _iow(0x8D, "kvm_fpu")
KVM_GET_LAPIC: Final = _ior(0x8E, "kvm_lapic_state")
KVM_SET_LAPIC: Final = _iow(0x8F, "kvm_lapic_state")
KVM_SET_CPUID2: Final = _iow(0x90, "kvm_cpuid2")
KVM_GET_MP_STATE: Final = _ior(0x98, "kvm_mp_state")
KVM_KVMCLOCK_CTRL: Final = _io(0xAD)

NAMES: Final = {value: name for name, value in list(globals().items()) if name.startswith("KVM_")}
"""Each request's name, for errors."""
