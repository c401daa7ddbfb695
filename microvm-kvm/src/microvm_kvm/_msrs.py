"""Model-specific registers as a vCPU starts with them. Pure.

Those that Linux, entered past the firmware, expects to hold what firmware leaves (Intel SDM volume
4). KVM refuses a register that it does not list (KVM_GET_MSR_INDEX_LIST), so only those are set.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

_HEADER: Final = struct.Struct("<II")
"""struct kvm_msrs: nmsrs, pad"""
_ENTRY: Final = struct.Struct("<IIQ")
"""struct kvm_msr_entry: index, reserved, data"""
_LIST_HEADER: Final = struct.Struct("<I")

MSR_IA32_TSC: Final = 0x10
MSR_IA32_SYSENTER_CS: Final = 0x174
MSR_IA32_SYSENTER_ESP: Final = 0x175
MSR_IA32_SYSENTER_EIP: Final = 0x176
MSR_IA32_MISC_ENABLE: Final = 0x1A0
MSR_MTRR_DEF_TYPE: Final = 0x2FF
MSR_STAR: Final = 0xC000_0081
MSR_LSTAR: Final = 0xC000_0082
MSR_CSTAR: Final = 0xC000_0083
MSR_SYSCALL_MASK: Final = 0xC000_0084
MSR_KERNEL_GS_BASE: Final = 0xC000_0102

INITIAL: Final[Mapping[int, int]] = {
    MSR_IA32_SYSENTER_CS: 0,
    MSR_IA32_SYSENTER_ESP: 0,
    MSR_IA32_SYSENTER_EIP: 0,
    MSR_STAR: 0,
    MSR_LSTAR: 0,
    MSR_CSTAR: 0,
    MSR_SYSCALL_MASK: 0,
    MSR_KERNEL_GS_BASE: 0,
    MSR_IA32_TSC: 0,
    MSR_IA32_MISC_ENABLE: 1,  # fast string operations
}
ALWAYS: Final[Mapping[int, int]] = {
    MSR_MTRR_DEF_TYPE: 0x806,  # enabled, write-back: without it Linux gives up on PAT
}
"""KVM has these wherever it has MTRRs, but lists none of them: the list is of what a snapshot
must save and has no other source."""


def initial_msrs(supported: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Index and value of each register to set, of those that KVM lists."""
    listed = frozenset(supported)
    return tuple((index, value) for index, value in INITIAL.items() if index in listed) + tuple(
        ALWAYS.items()
    )


def empty_list(capacity: int) -> bytearray:
    """A struct kvm_msr_list with room for `capacity` numbers, for the kernel to fill."""
    return bytearray(_LIST_HEADER.pack(capacity) + bytes(4 * capacity))


def unpack_list(data: bytes | bytearray) -> tuple[int, ...]:
    """The numbers in a struct kvm_msr_list that the kernel has filled."""
    (count,) = _LIST_HEADER.unpack_from(data)
    return struct.unpack_from(f"<{count}I", data, _LIST_HEADER.size)


def pack(msrs: Iterable[tuple[int, int]]) -> bytearray:
    """A struct kvm_msrs with these registers."""
    entries = [_ENTRY.pack(index, 0, value) for index, value in msrs]
    return bytearray(_HEADER.pack(len(entries), 0) + b"".join(entries))
