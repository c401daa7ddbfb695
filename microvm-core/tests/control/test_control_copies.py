"""Copies that are asked for at a machine's control socket: done, refused, given up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from microvm import Machine
from microvm.abc import CopyReport
from microvm.errors import GuestGone

from .control_clients import answer_line, ask, connected


class Copies:
    """The files of a guest that only a test's script knows."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.cancelled = trio.Event()
        self.does: Callable[[], Any] = trio.lowlevel.checkpoint

    async def _copy(self, first: str, second: str) -> CopyReport:
        self.asked.append((first, second))
        try:
            await self.does()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return CopyReport(entries=2, bytes=3, skipped=("pipe",))

    def into(self, machine: Machine) -> None:
        machine.copy_in = self._copy  # type: ignore[method-assign]
        machine.copy_out = self._copy  # type: ignore[method-assign]


def copy_line(verb: str, **paths: str) -> bytes:
    return json.dumps({"do": verb, **paths}).encode() + b"\n"


async def test_a_copy_is_done_by_the_machines_program_and_told(machine_of, place) -> None:
    copies = Copies()
    async with machine_of() as machine, await connected(place) as client:
        copies.into(machine)
        await client.send_all(copy_line("copy-in", local="/a", guest="/b"))
        answered = await answer_line(client)
        assert answered == {"ok": {"entries": 2, "bytes": 3, "skipped": ["pipe"]}}
        await client.send_all(copy_line("copy-out", local="/a", guest="/b"))
        assert "ok" in await answer_line(client)
        assert copies.asked == [("/a", "/b"), ("/b", "/a")]


async def leave_with_a_copy(
    machine: Machine, place: Path, *, before: bytes = b"", after: bytes = b""
) -> None:
    """Begin one that takes for ever, and hang up. It is given up, and the machine lives on."""
    copies = Copies()
    copies.does = trio.sleep_forever
    copies.into(machine)
    async with await connected(place) as client:
        await client.send_all(before + copy_line("copy-in", local="/a", guest="/b"))
        with trio.fail_after(30):
            while not copies.asked:
                await trio.testing.wait_all_tasks_blocked(0.001)
        if after:
            await client.send_all(after)
            await trio.testing.wait_all_tasks_blocked(0.001)
    with trio.fail_after(30):
        await copies.cancelled.wait()
    assert (await ask("info"))[0]["state"] == "running"


async def test_who_leaves_gives_up_the_copy(machine_of, place, caplog) -> None:
    async with machine_of() as machine:
        await leave_with_a_copy(machine, place)
    assert not caplog.records


async def test_who_leaves_without_having_read_an_answer_gives_up_the_copy_too(
    machine_of, place, caplog
) -> None:
    async with machine_of() as machine:
        await leave_with_a_copy(machine, place, before=copy_line("info"))
    assert not caplog.records


async def test_who_has_asked_for_more_and_leaves_gives_up_the_copy_too(
    machine_of, place, caplog
) -> None:
    async with machine_of() as machine:
        await leave_with_a_copy(machine, place, after=copy_line("info"))
    assert not caplog.records


async def test_what_a_copy_fails_by_is_told_whosever_fault(machine_of, place) -> None:
    copies = Copies()
    failures = iter([GuestGone("It is gone."), FileNotFoundError(2, "No such file or directory")])

    async def fail() -> None:
        raise next(failures)

    copies.does = fail
    async with machine_of() as machine, await connected(place) as client:
        copies.into(machine)
        for code, message in [
            ("guest.gone", "It is gone."),
            ("config", "/a can't be copied: No such file or directory."),
        ]:
            await client.send_all(copy_line("copy-in", local="/a", guest="/b"))
            said = await answer_line(client)
            assert (said["error"], said["message"]) == (code, message)


@pytest.mark.parametrize(
    "paths",
    [
        {},
        {"local": "/a"},
        {"local": "a", "guest": "/b"},
        {"local": "/a", "guest": "b"},
        {"local": "/a\0", "guest": "/b"},
    ],
)
async def test_a_copy_without_two_whole_paths_is_no_request(machine_of, place, paths) -> None:
    async with machine_of(), await connected(place) as client:
        await client.send_all(copy_line("copy-out", **paths))
        assert (await answer_line(client))["error"] == "control.request"
        await client.send_all(copy_line("info"))
        assert "ok" in await answer_line(client)
