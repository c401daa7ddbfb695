"""Why a vCPU stopped running guest code: each exit is a value that says what the host must do.

Named by the deed, not by any hypervisor's number. Data is bytes in guest order (little-endian).
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen
class MmioRead:
    """The guest reads memory that is no RAM: answer by `Vcpu.complete_read`."""

    address: int
    length: int
    """1 to 8 bytes."""


@attrs.frozen
class MmioWrite:
    """The guest writes to memory that is no RAM."""

    address: int
    data: bytes
    """1 to 8 bytes."""


@attrs.frozen
class PioRead:
    """The guest reads a port `count` times: answer `size * count` bytes by `complete_read`."""

    port: int
    size: int
    """1, 2 or 4 bytes."""
    count: int = 1
    """More than 1 for string instructions (``rep insb``)."""


@attrs.frozen
class PioWrite:
    """The guest writes to a port, once for each `size` bytes of `data`."""

    port: int
    size: int
    """1, 2 or 4 bytes."""
    data: bytes


@attrs.frozen
class Halt:
    """The CPU waits for an interrupt, and the hypervisor leaves the waiting to the host."""


@attrs.frozen
class WaitForInterrupt:
    """The same on Arm: WFI or WFE, with the virtual timer's deadline if it is armed."""

    deadline_ns: int | None = None
    """Nanoseconds until the virtual timer fires, or None if it is not armed."""


@attrs.frozen
class VtimerFired:
    """The virtual timer fired and is masked until the host has injected its interrupt."""


@attrs.frozen
class PsciCall:
    """The guest calls the firmware (Arm DEN0022, Power State Coordination Interface)."""

    function: int
    arguments: tuple[int, ...]


@attrs.frozen
class SystemEvent:
    """The guest asked the hypervisor itself for a shutdown or reset, or crashed by its own word."""

    kind: str
    """``shutdown``, ``reset``, ``crash``, or the hypervisor's number."""


@attrs.frozen
class Shutdown:
    """The CPU can't go on: on x86 a triple fault."""


@attrs.frozen
class FailEntry:
    """The hardware refused to run the vCPU with the state it was given."""

    reason: int
    """The hardware's own number."""


@attrs.frozen
class InternalError:
    """The hypervisor can't go on with this guest, say at an instruction it does not emulate."""

    suberror: int
    """The hypervisor's own number."""
    what: str
    """The same in words."""
    details: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    """Whatever else it said."""


@attrs.frozen
class Interrupted:
    """`Vcpu.kick`, or nothing at all: run again, or stop."""


@attrs.frozen
class UnknownExit:
    """An exit that nothing here was asked to know."""

    number: int


VcpuExit = (
    MmioRead
    | MmioWrite
    | PioRead
    | PioWrite
    | Halt
    | WaitForInterrupt
    | VtimerFired
    | PsciCall
    | SystemEvent
    | Shutdown
    | FailEntry
    | InternalError
    | Interrupted
    | UnknownExit
)
"""Any of them."""
