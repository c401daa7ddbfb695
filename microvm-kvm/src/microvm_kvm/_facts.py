"""Opening /dev/kvm, and what it says of itself; each thing that can be wrong has its sentence."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import attrs

from microvm.arch.x86_64.board import MAX_VCPU_COUNT
from microvm.errors import BackendUnavailable, HypervisorCallError
from microvm_kvm import _cpuid, _msrs
from microvm_kvm._abi import constants as kvm
from microvm_kvm._abi import ioctls, pointer_to

if TYPE_CHECKING:
    from microvm_kvm._abi import Calls
    from microvm_kvm._cpuid import CpuidEntry

DEVICE: Final = "/dev/kvm"

REQUIRED: Final = {
    "KVM_CAP_IRQCHIP": kvm.KVM_CAP_IRQCHIP,
    "KVM_CAP_USER_MEMORY": kvm.KVM_CAP_USER_MEMORY,
    "KVM_CAP_SET_TSS_ADDR": kvm.KVM_CAP_SET_TSS_ADDR,
    "KVM_CAP_EXT_CPUID": kvm.KVM_CAP_EXT_CPUID,
    "KVM_CAP_MP_STATE": kvm.KVM_CAP_MP_STATE,
    "KVM_CAP_DESTROY_MEMORY_REGION_WORKS": kvm.KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
    "KVM_CAP_IRQFD": kvm.KVM_CAP_IRQFD,
    "KVM_CAP_PIT2": kvm.KVM_CAP_PIT2,
    "KVM_CAP_IOEVENTFD": kvm.KVM_CAP_IOEVENTFD,
}
"""Every KVM on x86 since Linux 3.10 has them; one that is made differently may not."""

_TABLE_CAPACITY: Final = 128
"""Entries asked for at first. 6.18 lists some 60 of CPUID and 100 of MSRs here."""


@attrs.frozen(kw_only=True)
class KvmFacts:
    """What does not change while the module is loaded."""

    mmap_size: int
    """Bytes of a vCPU's kvm_run and what follows it."""
    max_vcpu_count: int
    tsc_deadline: bool
    cpuid: tuple[CpuidEntry, ...] = attrs.field(repr=False)
    """Supported, not yet any vCPU's."""
    msrs: tuple[int, ...] = attrs.field(repr=False)
    """Indexes that KVM lists."""


def open_kvm(calls: Calls, path: str = DEVICE) -> int:
    """Open the device and make sure that it is a KVM that we can use. Close what it returns.

    Raises:
        BackendUnavailable: it is not there, not ours to use, or not what we need.
    """
    try:
        fd = calls.open(path)
    except OSError as error:
        raise _cannot_open(path, error) from error
    try:
        _require(calls, fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_facts(calls: Calls, fd: int) -> KvmFacts:
    """Ask an open /dev/kvm.

    Raises:
        HypervisorCallError: it does not say.
    """
    return KvmFacts(
        mmap_size=calls.ioctl(fd, ioctls.KVM_GET_VCPU_MMAP_SIZE),
        max_vcpu_count=min(extension(calls, fd, kvm.KVM_CAP_MAX_VCPUS) or 1, MAX_VCPU_COUNT),
        tsc_deadline=bool(extension(calls, fd, kvm.KVM_CAP_TSC_DEADLINE_TIMER)),
        cpuid=_supported_cpuid(calls, fd),
        msrs=_listed_msrs(calls, fd),
    )


def extension(calls: Calls, fd: int, capability: int) -> int:
    """KVM_CHECK_EXTENSION: 0 if KVM does not have it, else 1 or what it says of it."""
    return calls.ioctl(fd, ioctls.KVM_CHECK_EXTENSION, capability)


def _require(calls: Calls, fd: int, path: str) -> None:
    try:
        version = calls.ioctl(fd, ioctls.KVM_GET_API_VERSION)
        missing = [name for name, number in REQUIRED.items() if not extension(calls, fd, number)]
    except HypervisorCallError as error:
        raise BackendUnavailable(
            f"{path} does not answer as a KVM: {error.message}",
            remedy="Look at what it is (ls -l), and load kvm_intel or kvm_amd.",
        ) from error
    if version != kvm.KVM_API_VERSION:
        raise BackendUnavailable(
            f"{path} speaks version {version} of KVM's interface; there is only "
            f"{kvm.KVM_API_VERSION}.",
            remedy="Use a released Linux kernel.",
        )
    if missing:
        raise BackendUnavailable(
            f"{path} lacks {', '.join(missing)}.",
            remedy="Use a newer kernel (3.10 or later), or one with the whole of KVM for x86.",
        )


def _cannot_open(path: str, error: OSError) -> BackendUnavailable:
    what, remedy = _REASONS.get(
        error.errno or 0, (f"can't be opened: {error.strerror}", _LOAD_MODULE)
    )
    return BackendUnavailable(f"{path} {what}.", remedy=remedy)


_LOAD_MODULE: Final = (
    "Load kvm_intel or kvm_amd (modprobe); if that fails, switch virtualization on in the "
    "firmware, or on the host of this virtual machine."
)
_REASONS: Final = {
    errno.ENOENT: ("is not there", _LOAD_MODULE),
    errno.ENXIO: ("has no driver", _LOAD_MODULE),
    errno.ENODEV: ("has no driver", _LOAD_MODULE),
    errno.EACCES: (
        "is not yours to use",
        "Join its group (usermod -aG kvm $USER, then log in again), or in a container pass the "
        "device through.",
    ),
    errno.EPERM: (
        "is forbidden here, by a container's device list or a security module",
        "Pass the device through to the container (--device /dev/kvm).",
    ),
    errno.EBUSY: (
        "is in use by another hypervisor",
        "Stop the other one (VirtualBox, VMware) and unload its module.",
    ),
    errno.EMFILE: (
        "can't be opened: this process has too many open files",
        "Raise the limit (ulimit -n).",
    ),
    errno.ENFILE: (
        "can't be opened: the system has too many open files",
        "Raise fs.file-max.",
    ),
}
"""What stands behind the path, and the remedy."""


def _supported_cpuid(calls: Calls, fd: int) -> tuple[CpuidEntry, ...]:
    capacity = _TABLE_CAPACITY
    while True:
        table = _cpuid.empty_table(capacity)
        try:
            calls.ioctl(fd, ioctls.KVM_GET_SUPPORTED_CPUID, pointer_to(table))
        except HypervisorCallError as error:
            if error.errno != errno.E2BIG or capacity > 4096:
                raise
            capacity *= 2
        else:
            return _cpuid.unpack(table)


def _listed_msrs(calls: Calls, fd: int) -> tuple[int, ...]:
    capacity = _TABLE_CAPACITY
    while True:
        table = _msrs.empty_list(capacity)
        try:
            calls.ioctl(fd, ioctls.KVM_GET_MSR_INDEX_LIST, pointer_to(table))
        except HypervisorCallError as error:
            if error.errno != errno.E2BIG or capacity > 4096:
                raise
            capacity *= 2
        else:
            return _msrs.unpack_list(table)
