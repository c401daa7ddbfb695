"""An x86_64 VM and its vCPUs as a guest of ours meets them, step by step.

Orders that KVM insists on: the interrupt controllers come before the first vCPU (whose local APIC
is made with it) and CPUID before the MSRs (which ones there are depends on it; refused since Linux
6.13).
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from microvm.arch.x86_64.layout import KVM_TSS
from microvm.errors import HypervisorCallError
from microvm_kvm import _cpuid, _msrs
from microvm_kvm._abi import constants as kvm
from microvm_kvm._abi import ffi, ioctls, pointer_to

if TYPE_CHECKING:
    from microvm_kvm._abi import Calls
    from microvm_kvm._facts import KvmFacts

_FCW: Final = 0x37F
"""x87 control word after FINIT: all exceptions masked, extended precision."""
_MXCSR: Final = 0x1F80
"""The same for SSE: its value at reset."""

# Local vector table of the local APIC (Intel SDM volume 3A, figure 11-8).
_LVT0: Final = 0x350
_LVT1: Final = 0x360
_DELIVERY_MODE: Final = 7 << 8
_MASKED: Final = 1 << 16
_EXTINT: Final = 7 << 8
_NMI: Final = 4 << 8


def set_up_vm(calls: Calls, vm: int) -> None:
    """Give a fresh VM its interrupt controllers and its timer.

    Raises:
        HypervisorCallError: KVM refused.
    """
    calls.ioctl(vm, ioctls.KVM_SET_TSS_ADDR, KVM_TSS)
    calls.ioctl(vm, ioctls.KVM_CREATE_IRQCHIP)
    # The speaker's port, 0x61, reads as if there were one: Linux calibrates its clock by it.
    pit = ffi.new("struct kvm_pit_config *", {"flags": kvm.KVM_PIT_SPEAKER_DUMMY})
    calls.ioctl(vm, ioctls.KVM_CREATE_PIT2, pit)


def set_up_vcpu(calls: Calls, vcpu: int, facts: KvmFacts, *, index: int, count: int) -> None:
    """Bring a fresh vCPU to where firmware would leave it; its registers come later.

    Raises:
        HypervisorCallError: KVM refused.
    """
    entries = _cpuid.normalise(
        facts.cpuid, index=index, count=count, tsc_deadline=facts.tsc_deadline
    )
    calls.ioctl(vcpu, ioctls.KVM_SET_CPUID2, pointer_to(_cpuid.pack(entries)))
    _set_msrs(calls, vcpu, _msrs.initial_msrs(facts.msrs))
    fpu = ffi.new("struct kvm_fpu *", {"fcw": _FCW, "mxcsr": _MXCSR})
    calls.ioctl(vcpu, ioctls.KVM_SET_FPU, fpu)
    _wire_local_apic(calls, vcpu)


def _set_msrs(calls: Calls, vcpu: int, msrs: tuple[tuple[int, int], ...]) -> None:
    done = calls.ioctl(vcpu, ioctls.KVM_SET_MSRS, pointer_to(_msrs.pack(msrs)))
    # KVM stops at the first that it refuses, and says how many it has taken.
    if done < len(msrs) and msrs[done][0] not in _msrs.ALWAYS:
        raise HypervisorCallError(f"KVM_SET_MSRS ({msrs[done][0]:#x})", errno.EINVAL)


def _wire_local_apic(calls: Calls, vcpu: int) -> None:
    """LINT0 takes the PIC's interrupts, LINT1 is NMI (MP specification 1.4, 3.6.2.2)."""
    state = ffi.new("struct kvm_lapic_state *")
    calls.ioctl(vcpu, ioctls.KVM_GET_LAPIC, state)
    registers = ffi.buffer(state)
    for offset, mode in ((_LVT0, _EXTINT), (_LVT1, _NMI)):
        (value,) = struct.unpack_from("<I", registers, offset)
        struct.pack_into("<I", registers, offset, value & ~(_DELIVERY_MODE | _MASKED) | mode)
    calls.ioctl(vcpu, ioctls.KVM_SET_LAPIC, state)
