"""struct kvm_run to exits. Pure: bytes in, values out, no cffi, so it is tested everywhere.

The bytes are shared with the kernel and with nobody else: they stand still between two KVM_RUN.
This is the exit path. Formats are compiled once, and exits without data are made once.
"""

from __future__ import annotations

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


def decode(run: memoryview) -> VcpuExit:
    """The exit that the kernel has left in a vCPU's kvm_run (KVM API, section 5)."""
    (reason,) = _U32(run, 8)  # exit_reason
    decoder = _DECODERS.get(reason)
    return UnknownExit(reason) if decoder is None else decoder(run)


def read_buffer(run: memoryview, length: int) -> memoryview:
    """Where the data of the read that `run` tells of belongs.

    Args:
        run: A kvm_run whose exit is a `PioRead` or `MmioRead`.
        length: How many bytes that read asks for.
    """
    (reason,) = _U32(run, kvm.RUN_EXIT_REASON)
    offset = kvm.RUN_MMIO_DATA
    if reason == kvm.KVM_EXIT_IO:
        *_, offset = _IO(run, kvm.RUN_EXIT)
    return run[offset : offset + length]


def _io(run: memoryview) -> VcpuExit:
    direction, size, port, count, offset = _IO(run, 32)
    if direction:  # KVM_EXIT_IO_OUT
        return PioWrite(port, size, bytes(run[offset : offset + size * count]))
    return PioRead(port, size, count)


def _mmio(run: memoryview) -> VcpuExit:
    address, data, length, is_write = _MMIO(run, 32)
    if is_write:
        return MmioWrite(address, data[:length])
    return MmioRead(address, length)


def _system_event(run: memoryview) -> VcpuExit:
    number, _ = _ERROR(run, kvm.RUN_EXIT)
    return _SYSTEM_EVENTS.get(number) or SystemEvent(str(number))


def _fail_entry(run: memoryview) -> VcpuExit:
    return FailEntry(*_U64(run, kvm.RUN_EXIT))


def _internal_error(run: memoryview) -> VcpuExit:
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


_DECODERS: Final[dict[int, Callable[[memoryview], VcpuExit]]] = {
    kvm.KVM_EXIT_IO: _io,
    kvm.KVM_EXIT_MMIO: _mmio,
    kvm.KVM_EXIT_HLT: lambda run: _HALT,
    kvm.KVM_EXIT_SHUTDOWN: lambda run: _SHUTDOWN,
    kvm.KVM_EXIT_INTR: lambda run: INTERRUPTED,
    kvm.KVM_EXIT_FAIL_ENTRY: _fail_entry,
    kvm.KVM_EXIT_SYSTEM_EVENT: _system_event,
    kvm.KVM_EXIT_INTERNAL_ERROR: _internal_error,
}
