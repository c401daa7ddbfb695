"""Whole machines of paper, by way of the facade that applications use."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import microvm_paper.plugin
import pytest
import trio

from microvm import BackendUnavailable, BootSource, GuestRefused, Machine, MachineConfig
from microvm.outcome import OutcomeReason
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.plugins import plugin_manager


def config(kernel: Path, **fields: Any) -> MachineConfig:
    tiny_kernel(kernel)
    fields.setdefault("backend_options", {"pretend": True})
    return MachineConfig(backend="paper", boot=BootSource(kernel=kernel), provisioners=(), **fields)


def on_paper(config: MachineConfig, test: Callable[[Machine], Awaitable[None]]) -> Machine:
    """Run `test` on a machine, and return the machine that was."""
    plugins = plugin_manager(plugins={"backend/paper": microvm_paper.plugin})

    async def main() -> Machine:
        with trio.fail_after(30):
            async with Machine(config, plugins=plugins) as machine:
                await test(machine)
        return machine

    return trio.run(main)


def test_a_machine_of_paper_starts_says_what_it_is_and_ends(tmp_path: Path) -> None:
    async def test(machine: Machine) -> None:
        assert machine.backend.name == "paper"
        assert "Nothing runs here." in machine.console_tail

    machine = on_paper(config(tmp_path / "kernel"), test)
    assert machine.outcome is not None
    assert machine.outcome.reason is OutcomeReason.STOPPED


def test_what_is_sent_to_the_echo_port_comes_back(tmp_path: Path) -> None:
    async def test(machine: Machine) -> None:
        async with await machine.connect(7) as stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            received = b""
            while data := await stream.receive_some():
                received += data
        assert received == b"hello"

    on_paper(config(tmp_path / "kernel"), test)


def test_nobody_listens_on_any_other_port(tmp_path: Path) -> None:
    async def test(machine: Machine) -> None:
        with pytest.raises(GuestRefused):
            await machine.connect(8)

    on_paper(config(tmp_path / "kernel"), test)


def test_a_port_can_be_listened_on_once_and_again_when_closed(tmp_path: Path) -> None:
    async def test(machine: Machine) -> None:
        async with machine.listen(9):
            with pytest.raises(ValueError, match="listener already"):
                machine.listen(9)
        await machine.listen(9).aclose()

    on_paper(config(tmp_path / "kernel"), test)


def test_it_refuses_unless_it_is_asked_to_pretend(tmp_path: Path) -> None:
    async def test(machine: Machine) -> None:
        raise AssertionError("never started")

    with pytest.raises(BackendUnavailable, match="pretend"):
        on_paper(config(tmp_path / "kernel", backend_options={}), test)
