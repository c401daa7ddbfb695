"""From evidence to outcome."""

import signal
from typing import Any

import pytest

from microvm.console_signs import Signs
from microvm.errors import BackendError, ImageError
from microvm.outcome import OutcomeReason
from microvm_qemu._outcome import Evidence, decide, own_words, refusal

PANIC = "Kernel panic - not syncing: x"


def reason_of(**evidence: Any) -> OutcomeReason:
    return decide(Evidence(**{"returncode": 0, **evidence}), ()).reason


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        ({"asked": True, "returncode": -9}, OutcomeReason.STOPPED),
        ({"returncode": -9}, OutcomeReason.CRASHED),
        ({"returncode": 1}, OutcomeReason.CRASHED),
        ({"returncode": 0}, OutcomeReason.CRASHED),
        ({"shutdown_cause": "guest-reset"}, OutcomeReason.RESET),
        (
            {"shutdown_cause": "guest-reset", "signs": Signs(restarting=True)},
            OutcomeReason.RESET,
        ),
        ({"shutdown_cause": "guest-reset", "signs": Signs(panic=PANIC)}, OutcomeReason.PANIC),
        ({"returncode": -9, "signs": Signs(panic=PANIC, hung=True)}, OutcomeReason.PANIC),
        ({"shutdown_cause": "guest-panic"}, OutcomeReason.PANIC),
        ({"shutdown_cause": "guest-shutdown"}, OutcomeReason.POWERED_OFF),
        ({"returncode": -9, "halted": True}, OutcomeReason.POWERED_OFF),
        # Without ACPI, init's call to power off returns, and the kernel panics for want of init.
        (
            {"shutdown_cause": "guest-reset", "signs": Signs(panic=PANIC, halting=True)},
            OutcomeReason.POWERED_OFF,
        ),
        ({"shutdown_cause": "host-signal"}, OutcomeReason.CRASHED),
        # The guest was faster than our kill.
        ({"asked": True, "shutdown_cause": "guest-reset"}, OutcomeReason.RESET),
        # It panicked, and was on its way down when somebody else killed QEMU.
        ({"returncode": -15, "signs": Signs(panic=PANIC)}, OutcomeReason.CRASHED),
        ({"failure": "A device failed.", "returncode": -9}, OutcomeReason.CRASHED),
        ({"failed_state": "internal-error", "returncode": -9}, OutcomeReason.CRASHED),
    ],
)
def test_each_end_has_its_reason(evidence: dict[str, Any], reason: OutcomeReason) -> None:
    assert reason_of(**evidence) is reason


def test_a_triple_fault_and_a_reboot_are_told_apart() -> None:
    reboot = Evidence(returncode=0, shutdown_cause="guest-reset", signs=Signs(restarting=True))
    fault = Evidence(returncode=0, shutdown_cause="guest-reset")
    assert decide(reboot, ()).detail != decide(fault, ()).detail


def test_a_killed_qemu_is_told_with_the_signals_name_and_its_words() -> None:
    outcome = decide(Evidence(returncode=-signal.SIGKILL, stderr=("qemu: oops",)), ("last",))
    assert "killed by signal SIGKILL" in outcome.detail
    assert "oops" in outcome.detail
    assert outcome.console_tail == ("last",)


def test_a_signal_without_a_name_is_told_by_number() -> None:
    assert "signal 250" in decide(Evidence(returncode=-250), ()).detail


def test_a_cpu_that_gave_up_is_told_with_the_first_words() -> None:
    outcome = decide(
        Evidence(
            returncode=-9,
            failed_state="internal-error",
            stderr=("KVM internal error. Suberror: 1", "Code=00 00"),
        ),
        (),
    )
    assert "internal-error" in outcome.detail
    assert "Suberror" in outcome.detail


def test_warnings_are_not_what_qemu_failed_for() -> None:
    stderr = (
        "qemu-system-x86_64: -device x: the reason",
        "qemu-system-x86_64: warning: something else",
    )
    assert own_words(stderr) == "-device x: the reason"
    assert own_words(()) == ""


@pytest.mark.parametrize(
    ("line", "kind", "remedy"),
    [
        ("qemu: could not open kernel file '/k': No such file or directory", ImageError, None),
        ("qemu-system-x86_64: Error while loading elf kernel", ImageError, None),
        ("qemu: invalid kernel header", ImageError, None),
        ("qemu: initrd is too large, cannot support.(max: 1, need 2)", ImageError, "mem_size_mib"),
        (
            "qemu-system-x86_64: cannot set up guest memory 'ram0': Cannot allocate memory",
            BackendError,
            "mem_size_mib",
        ),
        ("qemu-system-x86_64: -nonsense: invalid option", BackendError, "backend_options"),
        (
            "qemu-system-x86_64: failed to initialize kvm: Permission denied",
            BackendError,
            "accel",
        ),
    ],
)
def test_a_refusal_has_qemus_words_and_what_to_do(
    line: str, kind: type[Exception], remedy: str | None
) -> None:
    error = refusal(Evidence(returncode=1, stderr=(line,)))
    assert type(error) is kind
    assert line.partition(": ")[2] in error.message
    if remedy is not None:
        assert error.remedy is not None
        assert remedy in error.remedy


def test_a_qemu_that_says_nothing_is_told_by_its_exit_code() -> None:
    assert "exit code 3" in refusal(Evidence(returncode=3)).message
