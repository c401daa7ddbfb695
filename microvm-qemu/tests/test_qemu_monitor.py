"""The monitor's IO, against a peer that this file plays."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from microvm.errors import BackendError, GuestGone
from microvm_qemu._monitor import Monitor
from microvm_qemu._qmp import Event

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Peer:
    """QEMU's side."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.socket = sock
        self._unread = b""

    async def command(self) -> dict[str, Any]:
        while b"\n" not in self._unread:
            data = await self.socket.recv(4096)
            assert data
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        command = json.loads(line)
        assert isinstance(command, dict)
        return command

    async def say(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message).encode() + b"\r\n")

    async def answer(self, value: Any = None) -> dict[str, Any]:
        command = await self.command()
        await self.say(**{"return": value if value is not None else {}, "id": command["id"]})
        return command


class Reading:
    """A monitor, a task that reads it, and what that got."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.events: list[Event] = []
        self.error: BackendError | None = None
        self.ended = trio.Event()

    async def run(self) -> None:
        try:
            while (events := await self.monitor.receive()) is not None:
                self.events += events
        except BackendError as error:
            self.error = error
        finally:
            self.ended.set()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Reading, Peer]]:
    near, far = socket.socketpair()
    with near, trio.socket.from_stdlib_socket(far) as far_socket:
        reading = Reading(Monitor(trio.socket.from_stdlib_socket(near)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading.run)
            yield reading, Peer(far_socket)
            nursery.cancel_scope.cancel()


async def test_begin_negotiates_and_lets_the_guest_run_without_waiting_in_between() -> None:
    async with connected() as (reading, peer), trio.open_nursery() as nursery:
        nursery.start_soon(reading.monitor.begin)
        first, second = await peer.command(), await peer.command()
        assert [first["execute"], second["execute"]] == ["qmp_capabilities", "cont"]
        await peer.say(QMP={})
        await peer.say(**{"return": {}, "id": first["id"]})
        await peer.say(**{"return": {}, "id": second["id"]})


async def test_replies_find_their_commands_in_any_order() -> None:
    results: dict[str, Any] = {}

    async def ask(name: str) -> None:
        results[name] = await reading.monitor.execute(name)

    async with connected() as (reading, peer), trio.open_nursery() as nursery:
        nursery.start_soon(ask, "a")
        nursery.start_soon(ask, "b")
        commands = [await peer.command(), await peer.command()]
        for command in reversed(commands):
            await peer.say(**{"return": command["execute"] * 2, "id": command["id"]})
    assert results == {"a": "aa", "b": "bb"}


async def test_events_come_in_between() -> None:
    async with connected() as (reading, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading.monitor.execute, "stop")
            await peer.say(event="STOP")
            await peer.answer()
        assert reading.events == [Event("STOP", {})]


async def test_a_refusal_is_an_error_with_qemus_words() -> None:
    async with connected() as (reading, peer), trio.open_nursery() as nursery:

        async def refuse() -> None:
            command = await peer.command()
            await peer.say(error={"class": "X", "desc": "not now"}, id=command["id"])

        nursery.start_soon(refuse)
        with pytest.raises(BackendError, match="not now"):
            await reading.monitor.execute("stop")


async def test_commands_under_way_and_later_ones_hear_that_qemu_is_gone() -> None:
    async with connected() as (reading, peer), trio.open_nursery() as nursery:

        async def leave() -> None:
            await peer.command()
            peer.socket.close()

        nursery.start_soon(leave)
        with pytest.raises(GuestGone):
            await reading.monitor.execute("stop")
        with pytest.raises(GuestGone):
            await reading.monitor.execute("cont")
        await reading.ended.wait()
        assert reading.error is None


async def test_garbage_is_a_typed_error_and_the_end_of_the_connection() -> None:
    async with connected() as (reading, peer):
        await peer.socket.send(b"garbage\n")
        await reading.ended.wait()
        assert reading.error is not None
        with pytest.raises(GuestGone):
            await reading.monitor.execute("stop")


async def test_a_cancelled_command_leaves_the_connection_usable() -> None:
    async with connected() as (reading, peer):
        with trio.move_on_after(60) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reading.monitor.execute, "first")
                first = await peer.command()
                scope.cancel()
        await peer.say(**{"return": 1, "id": first["id"]})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.answer, 2)
            assert await reading.monitor.execute("second") == 2


async def test_a_qemu_that_does_not_read_can_be_asked_for_ever_and_still_be_left() -> None:
    near, far = socket.socketpair()
    with near, far:
        monitor = Monitor(trio.socket.from_stdlib_socket(near))
        for _ in range(200):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(monitor.execute, "x" * 2000)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
