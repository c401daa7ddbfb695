"""struct kvm_run to exits. Pure: bytes in, values out, no cffi, so it is tested everywhere.

The bytes are shared with the kernel and with nobody else: they stand still between two KVM_RUN.

This is the exit path. A guest asks for the same few things again and again, and exits are values:
`Decoder` knows those it has seen by their bytes, which takes 1 us where making one anew takes 2
(measured between two KVM_RUN, which leave the CPU's caches cold; a C loop's whole exit is 7.4).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Final

from microvm.exits import (
    FailEntry,
    Halt,
    InternalError,
    Interrupted,
    MmioRead,
    MmioWrite,
    PioRead,
    PioWrite,
    Shutdown,
    SystemEvent,
    UnknownExit,
    VcpuExit,
)
from microvm_kvm._abi import constants as kvm

RunBytes = mmap.mmap | memoryview
"""A kvm_run: mapped, or as a test has it. A slice of a mapping is bytes at once."""

INTERRUPTED: Final = Interrupted()
_HALT: Final = Halt()
_SHUTDOWN: Final = Shutdown()

_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from
_IO: Final = struct.Struct("<BBHIQ").unpack_from
"""direction, size, port, count, data_offset"""
_MMIO: Final = struct.Struct("<Q8sIB").unpack_from
"""phys_addr, data, len, is_write"""
_ERROR: Final = struct.Struct("<II").unpack_from
"""suberror or type, ndata"""

_SUBERRORS: Final = {
    kvm.KVM_INTERNAL_ERROR_EMULATION: "KVM can't emulate an instruction",
    kvm.KVM_INTERNAL_ERROR_SIMUL_EX: "exceptions came at the same time",
    kvm.KVM_INTERNAL_ERROR_DELIVERY_EV: "delivering an event failed",
    kvm.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "the hardware exited for an unknown reason",
}
_SYSTEM_EVENTS: Final = {
    kvm.KVM_SYSTEM_EVENT_SHUTDOWN: SystemEvent("shutdown"),
    kvm.KVM_SYSTEM_EVENT_RESET: SystemEvent("reset"),
    kvm.KVM_SYSTEM_EVENT_CRASH: SystemEvent("crash"),
}


def decode(run: RunBytes) -> VcpuExit:
    """The exit that the kernel has left in a vCPU's kvm_run (KVM API, section 5)."""
    (reason,) = _U32(run, 8)  # exit_reason
    decoder = _DECODERS.get(reason)
    return UnknownExit(reason) if decoder is None else decoder(run)


class Decoder:
    """`decode`, for the exits of one vCPU in the mapping of its kvm_run."""

    MAX_SEEN: Final = 4096
    """Exits that are remembered, about a MiB: a guest can think up as many as it likes."""

    def __init__(self, run: mmap.mmap) -> None:
        self._run = run
        self._seen: dict[bytes, VcpuExit | _PortWrites] = {}
        self._count = 0

    def exit(self) -> VcpuExit:
        """The exit that the kernel has left."""
        key = self._run[8:53]  # from exit_reason to mmio.is_write, the last field that we use
        seen = self._seen.get(key)
        if seen is None:
            return self._learn(key)
        if type(seen) is _PortWrites:
            data = self._run[seen.start : seen.end]
            return seen.by_data.get(data) or self._learn_data(seen, data)
        return seen  # type: ignore[return-value]  # mypy does not narrow by `type(x) is`

    def _learn(self, key: bytes) -> VcpuExit:
        exit_ = decode(self._run)
        match exit_:
            case PioWrite(port=port, size=size, data=data):
                if len(data) != size:
                    return exit_  # strings: they are long, and seldom the same
                *_, start = _IO(self._run, kvm.RUN_EXIT)
                value: VcpuExit | _PortWrites = _PortWrites(port, size, start)
            case PioRead() | MmioRead() | MmioWrite():
                value = exit_
            case _:
                return exit_
        self._make_room()
        self._seen[key] = value
        return exit_

    def _learn_data(self, writes: _PortWrites, data: bytes) -> VcpuExit:
        self._make_room()
        exit_ = writes.by_data[data] = PioWrite(writes.port, writes.size, data)
        return exit_

    def _make_room(self) -> None:
        if self._count >= self.MAX_SEEN:
            self._seen.clear()
            self._count = 0
        self._count += 1


class _PortWrites:
    """Writes of one width to one port. Their data lies elsewhere in kvm_run."""

    def __init__(self, port: int, size: int, start: int) -> None:
        self.port = port
        self.size = size
        self.start = start
        self.end = start + size
        self.by_data: dict[bytes, VcpuExit] = {}


def answer_read(run: RunBytes, data: bytes) -> None:
    """Put what the guest reads where the kernel looks for it.

    Args:
        run: A kvm_run whose exit is a `PioRead` or `MmioRead`.
        data: As many bytes as that read asks for.
    """
    (reason,) = _U32(run, kvm.RUN_EXIT_REASON)
    offset = kvm.RUN_MMIO_DATA
    if reason == kvm.KVM_EXIT_IO:
        *_, offset = _IO(run, kvm.RUN_EXIT)
    run[offset : offset + len(data)] = data


def _io(run: RunBytes) -> VcpuExit:
    direction, size, port, count, offset = _IO(run, 32)
    if direction:  # KVM_EXIT_IO_OUT
        return PioWrite(port, size, bytes(run[offset : offset + size * count]))
    return PioRead(port, size, count)


def _mmio(run: RunBytes) -> VcpuExit:
    address, data, length, is_write = _MMIO(run, 32)
    if is_write:
        return MmioWrite(address, data[:length])
    return MmioRead(address, length)


def _system_event(run: RunBytes) -> VcpuExit:
    number, _ = _ERROR(run, kvm.RUN_EXIT)
    return _SYSTEM_EVENTS.get(number) or SystemEvent(str(number))


def _fail_entry(run: RunBytes) -> VcpuExit:
    return FailEntry(*_U64(run, kvm.RUN_EXIT))


def _internal_error(run: RunBytes) -> VcpuExit:
    suberror, words = _ERROR(run, kvm.RUN_EXIT)
    what = _SUBERRORS.get(suberror, f"error {suberror} within KVM")
    details = {}
    if suberror == kvm.KVM_INTERNAL_ERROR_EMULATION and words:
        (flags,) = _U64(run, kvm.RUN_EMULATION_FLAGS)
        if flags & kvm.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
            size = min(run[kvm.RUN_EMULATION_INSN_SIZE], 15)
            start = kvm.RUN_EMULATION_INSN_BYTES
            details["instruction bytes"] = bytes(run[start : start + size]).hex(" ")
    else:
        offsets = range(kvm.RUN_DATA, kvm.RUN_DATA + 8 * min(words, kvm.RUN_DATA_WORDS), 8)
        data = " ".join(f"{_U64(run, offset)[0]:#x}" for offset in offsets)
        if data:
            details["data"] = data
    return InternalError(suberror, what, details)


_DECODERS: Final[dict[int, Callable[[RunBytes], VcpuExit]]] = {
    kvm.KVM_EXIT_IO: _io,
    kvm.KVM_EXIT_MMIO: _mmio,
    kvm.KVM_EXIT_HLT: lambda run: _HALT,
    kvm.KVM_EXIT_SHUTDOWN: lambda run: _SHUTDOWN,
    kvm.KVM_EXIT_INTR: lambda run: INTERRUPTED,
    kvm.KVM_EXIT_FAIL_ENTRY: _fail_entry,
    kvm.KVM_EXIT_SYSTEM_EVENT: _system_event,
    kvm.KVM_EXIT_INTERNAL_ERROR: _internal_error,
}
