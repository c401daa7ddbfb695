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
    CRASHED = "crashed"
    """The backend failed: its process was killed or gave up."""


@attrs.frozen(kw_only=True)
class MachineOutcome:
    """How a machine ended."""

    reason: OutcomeReason
    detail: str
    """One sentence for a person."""
    console_tail: tuple[str, ...] = ()
    """The guest's last console lines, control characters made visible."""
