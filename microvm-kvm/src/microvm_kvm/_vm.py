"""A virtual machine: its memory, its signals, its vCPUs."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import attrs

from microvm.abc import GuestDoorbell, IrqLine, Vm
from microvm.errors import GuestMemoryError, HypervisorCallError
from microvm_kvm._abi import constants as kvm
from microvm_kvm._abi import ffi, ioctls
from microvm_kvm._irq import EventFd, KvmDoorbell, KvmIrqLine
from microvm_kvm._vcpu import KvmVcpu
from microvm_kvm._x86_64 import set_up_vm

if TYPE_CHECKING:
    from microvm.memory import GuestRegion
    from microvm_kvm._abi import Calls
    from microvm_kvm._facts import KvmFacts

_DOORBELL_BYTES = 4


@attrs.frozen(kw_only=True, eq=False)
class _Slot:
    """A region that the guest sees."""

    number: int
    region: GuestRegion
    buffer: Any
    """cffi's hold on its memory: while it is there, the view can't be released."""


class KvmVm(Vm):
    """A VM around its descriptor, which it owns from here on, also when it raises.

    Raises:
        HypervisorCallError: KVM refused to set it up.
    """

    def __init__(self, calls: Calls, fd: int, facts: KvmFacts, *, vcpu_count: int) -> None:
        self._calls = calls
        self._fd = fd
        self._facts = facts
        self._vcpu_count = vcpu_count
        self._slots: list[_Slot] = []
        self._events: list[EventFd] = []
        try:
            set_up_vm(calls, fd)
        except BaseException:
            self.close()
            raise

    def map_memory(self, region: GuestRegion) -> None:
        taken = {slot.number for slot in self._slots}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        slot = _Slot(
            number=number,
            region=region,
            buffer=ffi.from_buffer(region.view, require_writable=True),
        )
        try:
            self._set_slot(slot, len(region.view))
        except BaseException:
            ffi.release(slot.buffer)
            raise
        self._slots.append(slot)

    def unmap_memory(self, region: GuestRegion) -> None:
        slot = next((slot for slot in self._slots if slot.region is region), None)
        if slot is None:
            raise ValueError(f"No such region is mapped at {region.start:#x}.")
        self._set_slot(slot, 0)
        self._slots.remove(slot)
        ffi.release(slot.buffer)

    def _set_slot(self, slot: _Slot, size: int) -> None:
        # SAFETY: from here on the guest, and KVM on its behalf, read and write `size` bytes at
        # `userspace_addr`. They are the region's own: its length is the view's, and the slot's
        # buffer keeps the view from being released and its mapping from being closed, until the
        # slot is gone (size 0) or the VM is.
        described = ffi.new(
            "struct kvm_userspace_memory_region *",
            {
                "slot": slot.number,
                "guest_phys_addr": slot.region.start,
                "memory_size": size,
                "userspace_addr": int(ffi.cast("uintptr_t", slot.buffer)),
            },
        )
        self._calls.ioctl(self._fd, ioctls.KVM_SET_USER_MEMORY_REGION, described)

    def create_vcpu(self, index: int) -> KvmVcpu:
        return KvmVcpu(
            self._calls,
            self._fd,
            self._facts,
            index=index,
            count=self._vcpu_count,
            read_memory=self._read,
        )

    def irq_line(self, gsi: int) -> IrqLine:
        event = self._event()
        asked = ffi.new("struct kvm_irqfd *", {"fd": event.fileno(), "gsi": gsi})
        self._attach(event, ioctls.KVM_IRQFD, asked)
        return KvmIrqLine(event)

    def doorbell(self, address: int, value: int) -> GuestDoorbell:
        event = self._event()
        asked = ffi.new(
            "struct kvm_ioeventfd *",
            {
                "datamatch": value,
                "addr": address,
                "len": _DOORBELL_BYTES,
                "fd": event.fileno(),
                "flags": kvm.KVM_IOEVENTFD_FLAG_DATAMATCH,
            },
        )
        self._attach(event, ioctls.KVM_IOEVENTFD, asked)
        return KvmDoorbell(event)

    def _event(self) -> EventFd:
        try:
            return EventFd()
        except OSError as error:
            raise HypervisorCallError(
                "eventfd", error.errno or 0, remedy="Raise the limit on open files (ulimit -n)."
            ) from error

    def _attach(self, event: EventFd, request: int, asked: Any) -> None:
        try:
            self._calls.ioctl(self._fd, request, asked)
        except BaseException:
            event.close()
            raise
        self._events.append(event)

    def _read(self, address: int, length: int) -> bytes:
        for slot in self._slots:
            if address in slot.region:
                offset = address - slot.region.start
                return bytes(slot.region.view[offset : offset + length])
        raise GuestMemoryError(f"The guest has no memory at {address:#x}.")

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        # The VM first: the kernel lets go of guest memory and of the eventfds with the last
        # descriptor, since by then every vCPU's is closed. Only then may they go.
        with contextlib.suppress(OSError):
            os.close(fd)
        for event in self._events:
            event.close()
        self._events.clear()
        for slot in self._slots:
            ffi.release(slot.buffer)
        self._slots.clear()
