"""Which backend is taken when none is named, and who hears of it."""

import sys

import pytest

from microvm._assembly import choose_backend
from microvm.cli.run import _tell_choice
from microvm.config import MachineConfig
from microvm.testing.platform import ScriptedBackend
from microvm.testing.plugins import plugin_manager

BROKEN = ScriptedBackend(name="fast", preference=10, usable=False, reason="It only emulates.")
SLOW = ScriptedBackend(name="slow", reason="It runs anywhere.")


def chosen():
    plugins = plugin_manager(BROKEN.factory(), SLOW.factory())
    return choose_backend(MachineConfig(), plugins)[1]


def test_the_next_usable_backend_is_taken_and_the_reason_says_why_not_the_first() -> None:
    choice = chosen()
    assert choice.name == "slow"
    assert choice.reason == "It runs anywhere. (fast not usable: It only emulates.)"
    assert [report.backend for report in choice.passed_over] == ["fast"]


def test_a_person_at_a_terminal_is_told(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _tell_choice(chosen())
    assert capsys.readouterr().err == (
        "microvm: not on fast: It only emulates.\nmicrovm: on slow: It runs anywhere.\n"
    )


def test_a_program_that_reads_standard_error_is_not(capsys) -> None:
    _tell_choice(chosen())
    assert capsys.readouterr().err == ""


def test_a_program_without_standard_error_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    _tell_choice(chosen())
