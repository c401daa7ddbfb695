"""What a vCPU says of itself: KVM's supported CPUID, made true for vCPU i of n. Pure.

KVM_GET_SUPPORTED_CPUID tells what the host's CPU and KVM can do, with the topology of whichever
host CPU it ran on. Here the topology becomes the guest's own: one package, as many cores as it
has vCPUs, one thread a core, APIC id = index. Nothing is added that KVM has not listed: leaves
keep their set, but those that enumerate levels (0xb, 0x1f) are written whole.

Leaves and their registers: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from microvm_kvm._abi.constants import KVM_CPUID_FLAG_SIGNIFCANT_INDEX

_HEADER: Final = struct.Struct("<II")
"""struct kvm_cpuid2: nent, padding"""
_ENTRY: Final = struct.Struct("<7I12x")
"""struct kvm_cpuid_entry2"""

# Leaf 1.
_ECX_PDCM: Final = 1 << 15
_ECX_TSC_DEADLINE: Final = 1 << 24
_ECX_HYPERVISOR: Final = 1 << 31
_EDX_HTT: Final = 1 << 28
# Leaf 0x80000001.
_ECX_CMP_LEGACY: Final = 1 << 1

_LEVEL_SMT, _LEVEL_CORE = 1, 2
_AMD_VENDORS: Final = (b"AuthenticAMD", b"HygonGenuine")


class CpuidEntry(NamedTuple):
    """One leaf or sub-leaf, in the order of struct kvm_cpuid_entry2, whose `index` is `subleaf`."""

    function: int
    subleaf: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def empty_table(capacity: int) -> bytearray:
    """A struct kvm_cpuid2 with room for `capacity` entries, for the kernel to fill."""
    return bytearray(_HEADER.pack(capacity, 0) + bytes(capacity * _ENTRY.size))


def unpack(table: bytes | bytearray) -> tuple[CpuidEntry, ...]:
    """The entries of a struct kvm_cpuid2 that the kernel has filled."""
    count, _ = _HEADER.unpack_from(table)
    return tuple(
        CpuidEntry(*_ENTRY.unpack_from(table, _HEADER.size + i * _ENTRY.size)) for i in range(count)
    )


def pack(entries: Sequence[CpuidEntry]) -> bytearray:
    """A struct kvm_cpuid2 with these entries."""
    return bytearray(
        _HEADER.pack(len(entries), 0) + b"".join(_ENTRY.pack(*entry) for entry in entries)
    )


def normalise(
    supported: Iterable[CpuidEntry], *, index: int, count: int, tsc_deadline: bool
) -> tuple[CpuidEntry, ...]:
    """The CPUID of vCPU `index` of `count`.

    Args:
        supported: What KVM_GET_SUPPORTED_CPUID lists.
        index: Also its APIC id.
        count: vCPUs of the VM.
        tsc_deadline: Whether KVM_CAP_TSC_DEADLINE_TIMER is there: KVM's list leaves that bit to
            us, since only who creates the interrupt controller knows.
    """
    entries = tuple(supported)
    topology = _Topology(index, count, tsc_deadline, _is_amd(entries))
    result: list[CpuidEntry] = []
    enumerated: set[int] = set()
    for entry in entries:
        if entry.function in _ENUMERATIONS:
            if entry.function not in enumerated:
                enumerated.add(entry.function)
                result.extend(topology.levels(entry.function))
            continue
        rewrite = _LEAVES.get(entry.function)
        result.append(entry if rewrite is None else rewrite(topology, entry))
    return tuple(result)


def _is_amd(entries: Iterable[CpuidEntry]) -> bool:
    for entry in entries:
        if entry.function == 0:
            return struct.pack("<3I", entry.ebx, entry.edx, entry.ecx) in _AMD_VENDORS
    return False


class _Topology:
    """One vCPU's place, and each leaf that tells of it."""

    def __init__(self, index: int, count: int, tsc_deadline: bool, amd: bool) -> None:
        self.index = index
        self.count = count
        self.tsc_deadline = tsc_deadline
        self.amd = amd
        self.id_bits = (count - 1).bit_length()
        """How many bits of the APIC id number the cores."""
        self.id_space = 1 << self.id_bits
        """How many ids the package takes: a power of two."""

    def features(self, entry: CpuidEntry) -> CpuidEntry:
        """Leaf 1: version and features.

        PDCM is taken away: it promises MSR_IA32_PERF_CAPABILITIES, and leaf 0xa promises none.
        """
        ecx = entry.ecx & ~(_ECX_PDCM | _ECX_TSC_DEADLINE) | _ECX_HYPERVISOR
        if self.tsc_deadline:
            ecx |= _ECX_TSC_DEADLINE
        edx = entry.edx & ~_EDX_HTT
        if self.count > 1:
            edx |= _EDX_HTT
        # Brand and CLFLUSH size stay; the number of ids, then our own.
        ebx = entry.ebx & 0xFFFF | min(self.id_space, 0xFF) << 16 | self.index << 24
        return entry._replace(ebx=ebx, ecx=ecx, edx=edx)

    def caches(self, entry: CpuidEntry) -> CpuidEntry:
        """Leaf 4, and AMD's 0x8000001d: the first two levels are a core's own, others shared."""
        kind, level = entry.eax & 0x1F, entry.eax >> 5 & 7
        if not kind:
            return entry
        shared = self.id_space - 1 if level >= 3 else 0
        eax = entry.eax & 0x3FFF | shared << 14
        if entry.function == 4:  # Intel counts the package's cores here too
            eax |= min(self.id_space - 1, 0x3F) << 26
        return entry._replace(eax=eax)

    def levels(self, function: int) -> tuple[CpuidEntry, ...]:
        """Leaves 0xb and 0x1f: threads of a core, cores of the package, and the end."""
        return (
            self._level(function, 0, shift=0, threads=1, kind=_LEVEL_SMT),
            self._level(function, 1, shift=self.id_bits, threads=self.count, kind=_LEVEL_CORE),
            self._level(function, 2, shift=0, threads=0, kind=0),
        )

    def _level(
        self, function: int, subleaf: int, *, shift: int, threads: int, kind: int
    ) -> CpuidEntry:
        return CpuidEntry(
            function=function,
            subleaf=subleaf,
            flags=KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax=shift,
            ebx=threads,
            ecx=subleaf | kind << 8,
            edx=self.index,
        )

    def no_counters(self, entry: CpuidEntry) -> CpuidEntry:
        """Leaf 0xa: no performance counters.

        A kernel that finds some runs its NMI watchdog on them, at several exits a second.
        """
        return entry._replace(eax=0, ebx=0, ecx=0, edx=0)

    def amd_features(self, entry: CpuidEntry) -> CpuidEntry:
        """Leaf 0x80000001: whether the ids that leaf 1 counts are cores."""
        if not self.amd:
            return entry
        ecx = entry.ecx & ~_ECX_CMP_LEGACY
        return entry._replace(ecx=ecx | _ECX_CMP_LEGACY if self.count > 1 else ecx)

    def amd_sizes(self, entry: CpuidEntry) -> CpuidEntry:
        """Leaf 0x80000008: ECX has the number of cores less 1, and the bits that number them."""
        if not self.amd:
            return entry
        ecx = entry.ecx & ~0xF0FF | self.count - 1 | self.id_bits << 12
        return entry._replace(ecx=ecx)

    def amd_ids(self, entry: CpuidEntry) -> CpuidEntry:
        """Leaf 0x8000001e: APIC id; core id, one thread a core; node 0 of one."""
        if not self.amd:
            return entry
        return entry._replace(eax=self.index, ebx=self.index & 0xFF, ecx=0)


_ENUMERATIONS: Final = frozenset({0xB, 0x1F})
_LEAVES: Final[dict[int, Callable[[_Topology, CpuidEntry], CpuidEntry]]] = {
    0x1: _Topology.features,
    0x4: _Topology.caches,
    0xA: _Topology.no_counters,
    0x8000_0001: _Topology.amd_features,
    0x8000_0008: _Topology.amd_sizes,
    0x8000_001D: _Topology.caches,
    0x8000_001E: _Topology.amd_ids,
}
