"""From what was seen of a machine's end to what is said of it. Pure."""

from __future__ import annotations

import re
import signal
from typing import Final

import attrs

from microvm.console_signs import Signs
from microvm.errors import BackendError, ImageError
from microvm.outcome import MachineOutcome, OutcomeReason

GUEST_RESET: Final = "guest-reset"
GUEST_SHUTDOWN: Final = "guest-shutdown"
GUEST_PANIC: Final = "guest-panic"
HOST_SIGNAL: Final = "host-signal"
"""ShutdownCause values (QEMU, qapi/run-state.json)."""


@attrs.frozen(kw_only=True)
class Evidence:
    """Everything known when QEMU has ended."""

    returncode: int
    """Of the process; negative for a signal."""
    asked: bool = False
    """We killed it because our caller wanted the machine to end."""
    shutdown_cause: str | None = None
    """Of QMP's SHUTDOWN event, if there was one."""
    signs: Signs = attrs.field(factory=Signs)
    halted: bool = False
    """All CPUs were seen halted for good after the kernel had said so; we then killed it."""
    failed_state: str | None = None
    """The RunState in which QEMU stopped the CPUs for good; we then killed it."""
    failure: str | None = None
    """What went wrong on the host's side; we then killed it."""
    stderr: tuple[str, ...] = ()
    """QEMU's own last lines."""


def decide(evidence: Evidence, console_tail: tuple[str, ...]) -> MachineOutcome:
    """How the machine ended."""
    reason, detail = _reason(evidence)
    return MachineOutcome(reason=reason, detail=detail, console_tail=console_tail)


def _reason(evidence: Evidence) -> tuple[OutcomeReason, str]:
    signs = evidence.signs
    by_guest = evidence.shutdown_cause in (GUEST_RESET, GUEST_SHUTDOWN, GUEST_PANIC)
    if evidence.failure is not None:
        return OutcomeReason.CRASHED, evidence.failure
    if evidence.failed_state is not None:
        words = _words(evidence.stderr[:1])
        return OutcomeReason.CRASHED, f"QEMU gave up ({evidence.failed_state}).{words}"
    # A kernel without a way to switch off ends init's call with a panic, hence before panics.
    if evidence.halted or (by_guest and signs.halting):
        return OutcomeReason.POWERED_OFF, "The guest shut itself down."
    if (by_guest or signs.hung) and signs.panic is not None:
        return OutcomeReason.PANIC, f"The guest's kernel panicked: {signs.panic}"
    match evidence.shutdown_cause:
        case "guest-panic":
            return OutcomeReason.PANIC, "The guest's kernel panicked."
        case "guest-shutdown":
            return OutcomeReason.POWERED_OFF, "The guest shut itself down."
        case "guest-reset" if signs.restarting:
            return OutcomeReason.RESET, "The guest rebooted."
        case "guest-reset":
            return (
                OutcomeReason.RESET,
                "The guest's CPU was reset without a word from its kernel (a triple fault?).",
            )
    if evidence.asked:
        return OutcomeReason.STOPPED, "The host stopped it."
    if evidence.shutdown_cause == HOST_SIGNAL:
        return OutcomeReason.CRASHED, "QEMU was told to end by a signal that was not ours."
    return OutcomeReason.CRASHED, f"QEMU {_end_of(evidence.returncode)}.{_words(evidence.stderr)}"


def _end_of(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = str(-returncode)
    return f"was killed by signal {name}"


_PREFIX = re.compile(r"^qemu(?:-system-\w+)?: ")


def own_words(stderr: tuple[str, ...]) -> str:
    """What QEMU said went wrong: its last line that is not a warning, without its name."""
    lines = [_PREFIX.sub("", line) for line in stderr if "warning:" not in line]
    return lines[-1] if lines else ""


def _words(stderr: tuple[str, ...]) -> str:
    words = own_words(stderr)
    return f" It said: {words}" if words else ""


_REMEDIES: Final = (
    (r"Cannot allocate memory|unable to map backing store", "Lower mem_size_mib."),
    (r"[Ii]nitrd is too large", "Raise mem_size_mib."),
    (r"invalid option|Property .* not found|is not a valid", "Look at backend_options."),
    (r"/dev/kvm|failed to initialize kvm", "Without KVM leave backend_options['accel'] away."),
)


def refusal(evidence: Evidence) -> BackendError | ImageError:
    """The error for a QEMU that ended before the machine ran."""
    words = own_words(evidence.stderr)
    remedy = next((text for pattern, text in _REMEDIES if re.search(pattern, words)), None)
    if evidence.returncode > 0 and re.search(r"\b(kernel|initrd)\b", words):
        return ImageError(f"QEMU can't load the guest: {words}", remedy=remedy)
    if evidence.failure is not None:
        return BackendError(evidence.failure)
    if words:
        return BackendError(f"QEMU did not start the machine: {words}", remedy=remedy)
    return BackendError(
        f"QEMU {_end_of(evidence.returncode)} before the machine ran, without a word."
    )
