"""How a machine ended, as a value."""

from __future__ import annotations

import enum

import attrs


class OutcomeReason(enum.StrEnum):
    """Why a machine is no longer running."""

    STOPPED = "stopped"
    """The host ended it: `stop()`, or the scope around the machine was left or cancelled."""
    POWERED_OFF = "powered-off"
    """The guest shut itself down, by its own wish or when asked to."""
    RESET = "reset"
    """The guest rebooted. Machines do not reboot; they end."""
    PANIC = "panic"
    """The guest's kernel panicked."""
    HALTED = "halted"
    """Every CPU of the guest waits with interrupts off, and none can wake again."""
    TRIPLE_FAULT = "triple-fault"
    """A CPU of the guest met an exception it could not even report."""
    INTERNAL_ERROR = "internal-error"
    """The hypervisor could not go on with this guest; `MachineOutcome.cpu_state` says where."""
    CRASHED = "crashed"
    """The backend failed: its process was killed or gave up, or a call to the host failed."""


@attrs.frozen(kw_only=True)
class MachineOutcome:
    """How a machine ended."""

    reason: OutcomeReason
    detail: str
    """One sentence for a person."""
    console_tail: tuple[str, ...] = ()
    """The guest's last console lines, control characters made visible."""
    cpu_state: tuple[str, ...] = ()
    """After a triple fault or an internal error: the CPU's registers and the code where it
    stood, a line each."""
