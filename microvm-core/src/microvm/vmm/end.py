"""How a machine of our own came to its end, and what is said of it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs

from microvm.arch.x86_64.registers import DescriptorTable, RegisterValue, Segment
from microvm.outcome import MachineOutcome, OutcomeReason

if TYPE_CHECKING:
    from microvm.console_signs import Signs


class EndKind(enum.Enum):
    """What was seen."""

    ASKED = enum.auto()
    """The host wanted it."""
    POWER_OFF = enum.auto()
    """The guest wrote to its power-off register, or told the hypervisor."""
    RESET = enum.auto()
    """The guest wrote to one of its reset registers, or told the hypervisor."""
    HALTED = enum.auto()
    """All CPUs were found halted with interrupts off."""
    HUNG = enum.auto()
    """The kernel has panicked and said that it stays there."""
    TRIPLE_FAULT = enum.auto()
    INTERNAL_ERROR = enum.auto()
    """The hypervisor or the hardware could not go on with the guest."""
    HOST_ERROR = enum.auto()
    """Something failed on our side."""


@attrs.frozen(kw_only=True)
class End:
    """The first thing that ended the machine; what comes after it does not count."""

    kind: EndKind
    what: str = ""
    """More of it, as a sentence, where the kind does not say it all."""
    cpu_state: tuple[str, ...] = ()


def decide(end: End, signs: Signs, console_tail: tuple[str, ...]) -> MachineOutcome:
    """How the machine ended, from what was seen and from its kernel's last words."""
    reason, detail = _reason(end, signs)
    return MachineOutcome(
        reason=reason, detail=detail, console_tail=console_tail, cpu_state=end.cpu_state
    )


_BY_GUEST: Final = frozenset(
    {EndKind.RESET, EndKind.HALTED, EndKind.HUNG, EndKind.TRIPLE_FAULT, EndKind.POWER_OFF}
)


def _reason(end: End, signs: Signs) -> tuple[OutcomeReason, str]:
    # A kernel without a way to switch off halts, or ends init's call with a panic after it has
    # said that it halts: hence before panics.
    if end.kind in _BY_GUEST and signs.halting:
        return OutcomeReason.POWERED_OFF, "The guest shut itself down."
    if end.kind in _BY_GUEST and signs.panic is not None:
        return OutcomeReason.PANIC, f"The guest's kernel panicked: {signs.panic}"
    match end.kind:
        case EndKind.ASKED:
            return OutcomeReason.STOPPED, "The host stopped it."
        case EndKind.POWER_OFF:
            return OutcomeReason.POWERED_OFF, "The guest shut itself down."
        case EndKind.RESET:
            return OutcomeReason.RESET, "The guest rebooted."
        case EndKind.HALTED:
            return (
                OutcomeReason.HALTED,
                "Every CPU of the guest halted with interrupts off: nothing could wake it.",
            )
        case EndKind.HUNG:
            return OutcomeReason.PANIC, "The guest's kernel panicked."
        case EndKind.TRIPLE_FAULT:
            return OutcomeReason.TRIPLE_FAULT, "A triple fault: the guest's CPU could not go on."
        case EndKind.INTERNAL_ERROR:
            return OutcomeReason.INTERNAL_ERROR, end.what
        case EndKind.HOST_ERROR:
            return OutcomeReason.CRASHED, end.what


def cpu_state_lines(
    index: int, registers: Mapping[str, RegisterValue], code: bytes
) -> tuple[str, ...]:
    """A CPU's registers and code as lines of text, a few registers each.

    Args:
        index: Which vCPU.
        registers: By name; those that are 0 are left out.
        code: The bytes at its instruction pointer; empty if unknown.
    """
    words: list[str] = []
    for name, value in registers.items():
        match value:
            case int() if value:
                words.append(f"{name}={value:#x}")
            case Segment():
                words.append(f"{name}={value.selector:#x}:{value.base:#x}")
            case DescriptorTable():
                words.append(f"{name}={value.base:#x}+{value.limit:#x}")
    lines = [" ".join(words[at : at + 6]) for at in range(0, len(words), 6)]
    lines[:0] = [f"vCPU {index}:"]
    if code:
        lines.append(f"code: {code.hex(' ')}")
    return tuple(lines)
