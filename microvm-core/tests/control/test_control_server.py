"""A machine's control socket: what it answers, and whom. Rows 86 and 90."""

import os
import random
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from microvm import ConfigError
from microvm.control import server as server_module
from microvm.control.client import ControlClient, running_machines
from microvm.control.directory import runtime_directory
from microvm.control.lines import MAX_REQUEST_BYTES
from microvm.control.server import ControlServer
from microvm.outcome import MachineOutcome, OutcomeReason
from microvm.testing.census import Census
from microvm.testing.platform import ScriptedMachine

from .control_clients import NAME, Build, answer_line, ask, connected


async def test_info_stats_and_stop(machine_of: Build) -> None:
    async with machine_of() as machine:
        info, stats, stopped = await ask("info", "stats", "stop")
        assert (info["name"], info["state"], info["pid"]) == (NAME, "running", os.getpid())
        assert info["backend"] == "scripted"
        assert set(stats) == {"devices", "exits", "console", "timing"}
        assert stopped == {"reason": "stopped", "detail": "The host stopped it."}
        assert machine.state == "ended"
        (info,) = await ask("info")
        assert info["state"] == "ended"


async def test_the_socket_is_its_users_alone_and_goes_with_the_machine(machine_of, place) -> None:
    before = Census.take()
    async with machine_of():
        status = (place / f"{NAME}.sock").stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert status.st_mode & 0o777 == 0o600
        assert place.stat().st_mode & 0o777 == 0o700
    assert list(place.iterdir()) == []
    assert Census.take() == before


STRANGER = """
import os, socket
talk = socket.socket(socket.AF_UNIX)
os.setgid(65534)
os.setuid(65534)
talk.connect("web-1.sock")
try:
    talk.sendall(b'{"do": "info"}' + bytes([10]))
    print(talk.recv(100))
except (BrokenPipeError, ConnectionResetError):
    print(b"")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_another_user_is_not_heard_even_where_the_modes_let_him(machine_of, place) -> None:
    async with machine_of():
        place.chmod(0o755)
        (place / f"{NAME}.sock").chmod(0o666)
        said = await trio.run_process(
            [sys.executable, "-c", STRANGER], cwd=place, capture_stdout=True
        )
        assert said.stdout == b"b''\n"
        place.chmod(0o700)
        assert (await ask("info"))[0]["state"] == "running"


async def test_a_name_is_one_machines_at_a_time(machine_of: Build) -> None:
    async with machine_of():
        with pytest.raises(ConfigError, match=r"web-1\.sock is in use"):
            async with machine_of():
                pass
        assert (await ask("info"))[0]["state"] == "running"
    async with machine_of():
        pass


async def test_what_a_killed_machine_left_is_replaced_and_not_listed(machine_of, place) -> None:
    place.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / f"{NAME}.sock"))
    assert list(running_machines()) == []
    with pytest.raises(ConfigError, match="No machine called 'web-1' is running"):
        ControlClient(NAME)
    async with machine_of():
        listed = await trio.to_thread.run_sync(lambda: list(running_machines()))
        assert [(one["name"], one["state"]) for one in listed] == [(NAME, "running")]


async def test_a_place_that_others_see_into_is_refused(machine_of, place) -> None:
    place.mkdir()
    place.chmod(0o755)
    with pytest.raises(ConfigError, match="not a directory of your own alone"):
        async with machine_of():
            pass


def test_the_place_follows_the_environment(tmp_path: Path) -> None:
    assert runtime_directory({"XDG_RUNTIME_DIR": "/run/me"}) == Path("/run/me/microvm")
    fallback = runtime_directory({"XDG_RUNTIME_DIR": "not/absolute"})
    assert fallback.is_absolute()
    assert str(os.geteuid()) in str(fallback)


async def test_the_console_is_taken_over_with_what_was_sent_behind_the_line(
    machine_of: Build, place: Path
) -> None:
    async with machine_of() as machine, await connected(place) as client:
        running = machine._running
        assert isinstance(running, ScriptedMachine)
        running.say("login:")
        await client.send_all(b'{"do": "console"}\nroot\n')
        assert await answer_line(client) == {"ok": {}}
        assert await client.receive_some() == b"login:\n"
        with trio.fail_after(30):
            while running.typed != b"root\n":  # noqa: ASYNC110 - it is memory that changes
                await trio.sleep(0.001)
        await machine.stop()
        assert await client.receive_some() == b""


async def test_a_client_that_reads_nothing_holds_up_nobody(machine_of: Build, place: Path) -> None:
    with trio.fail_after(30):
        async with machine_of() as machine, await connected(place) as client:
            running = machine._running
            assert isinstance(running, ScriptedMachine)
            await client.send_all(b'{"do": "console"}\n')
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(64):
                running.print(bytes(64 * 1024))
                await trio.sleep(0.001)
            assert (await ask("info"))[0]["state"] == "running"
            assert machine.metrics.console["dropped_bytes"] > 1 << 20


async def test_64_clients_at_once_get_one_end_and_all_are_told(machine_of: Build) -> None:
    """Row 90."""
    kinds = [("info", "stats", "stop", "info", "stats"), ("stop", "stop"), ("stats", "info")]
    answers: list[Any] = []

    async def client(number: int) -> None:
        answers.extend(await ask(*kinds[number % len(kinds)]))

    async with machine_of(), trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(client, number)
    assert len(answers) == 22 * 5 + 21 * 2 + 21 * 2
    assert all(isinstance(answer, dict) for answer in answers), answers
    assert {a["reason"] for a in answers if "reason" in a} == {"stopped"}


async def test_a_stop_whose_client_has_gone_is_done_all_the_same(machine_of, place) -> None:
    async with machine_of() as machine:
        async with await connected(place) as client:
            await client.send_all(b'{"do": "stop"}\n')
        with trio.fail_after(30):
            assert (await machine.wait()).reason.value == "stopped"


async def test_who_asked_for_the_end_hears_of_it_though_the_program_leaves_at_once(
    machine_of: Build,
) -> None:
    answers: list[Any] = []

    async def client() -> None:
        answers.extend(await ask("stop"))

    async with trio.open_nursery() as nursery, machine_of() as machine:
        nursery.start_soon(client)
        await machine.wait()
    assert answers == [{"reason": "stopped", "detail": "The host stopped it."}]


class SlowToStop:
    """What a server asks of a machine whose end takes `seconds`."""

    state = "running"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def stop(self) -> MachineOutcome:
        await trio.sleep(self._seconds)
        return MachineOutcome(reason=OutcomeReason.STOPPED, detail="At last.")


async def asked_to_stop_and_left(place: Path, seconds: float) -> bytes:
    """What a client hears of a machine that is gone while its end is being asked for."""
    server: Any = ControlServer(NAME, SlowToStop(seconds))  # type: ignore[arg-type]
    with trio.fail_after(30):
        async with server.lifespan():
            client = await connected(place)
            await client.send_all(b'{"do": "stop"}\n')
            while not server._answering:
                await trio.testing.wait_all_tasks_blocked()
        async with client:
            return b"".join([bytes(chunk) async for chunk in client])


async def test_leaving_waits_for_the_answer_to_who_asked_for_the_end(place, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "LAST_ANSWERS_WITHIN_S", 1000)
    assert b"At last." in await asked_to_stop_and_left(place, 0.1)


async def test_but_not_for_long(place, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "LAST_ANSWERS_WITHIN_S", 0.05)
    assert await asked_to_stop_and_left(place, 1000) == b""


async def test_leaving_waits_for_nobody_who_has_his_answer(machine_of, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "LAST_ANSWERS_WITHIN_S", 1000)
    with trio.fail_after(30):
        async with machine_of():
            await ask("info", "stats", "stop")


async def test_who_does_not_read_answers_is_cut_off(machine_of, place, monkeypatch) -> None:
    """Row 86."""
    monkeypatch.setattr(server_module, "ANSWER_WITHIN_S", 0.05)
    async with machine_of() as machine, await connected(place) as client:
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            while True:
                await client.send_all(b'{"do": "stats"}\n' * 100)
        assert machine.state == "running"


async def test_more_clients_than_there_may_be_are_sent_away(machine_of, place, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CLIENTS", 2)
    async with machine_of(), await connected(place), await connected(place):
        await trio.testing.wait_all_tasks_blocked()
        async with await connected(place) as third:
            refused = await answer_line(third)
            assert "Too many" in refused["message"]
            assert "End some of them" in refused["remedy"]
            assert await third.receive_some() == b""


async def test_who_has_left_takes_nobodys_place(machine_of, place, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CLIENTS", 2)
    async with machine_of():
        for _ in range(5):
            async with await connected(place) as client:
                await client.send_all(b'{"do": "info"}\n')
                assert "ok" in await answer_line(client)
            await trio.testing.wait_all_tasks_blocked()


async def test_silence_is_cut_off(machine_of, place, monkeypatch) -> None:
    """Row 86: half a request, then nothing."""
    monkeypatch.setattr(server_module, "REQUEST_WITHIN_S", 0.05)
    async with machine_of(), await connected(place) as client:
        await client.send_all(b'{"do": "in')
        with trio.fail_after(30):
            assert await client.receive_some() == b""


async def test_a_line_without_end_is_told_so_and_cut_off(machine_of, place) -> None:
    """Row 86."""
    async with machine_of() as machine, await connected(place) as client:
        await client.send_all(b"x" * (MAX_REQUEST_BYTES + 1))
        assert (await answer_line(client))["error"] == "control.request"
        assert machine.state == "running"


async def test_a_bad_request_leaves_the_connection_usable(machine_of, place) -> None:
    async with machine_of(), await connected(place) as client:
        await client.send_all(b'{"do": "reboot"}\n{"do": "info"}\n')
        refused = await answer_line(client)
        assert (refused["error"], "info" in refused["remedy"]) == ("control.request", True)
        assert (await answer_line(client))["ok"]["name"] == NAME


def hostile_bytes(chance: random.Random) -> bytes:
    pieces = [
        *(b"\x00", b"\xff\xfe", b"\n", b"\r\n", b"{", b"[" * 500, b'{"do":', b'"info"', b"}"),
        *(b'{"do": "info"}\n', b'{"do": "stats"}\n', b"9" * 1000, b"NaN", b'{"do": 1e999}\n'),
        *(b'{"do": "device-stream", "device": "x', b'0", "name": "\\ud800", "arguments": {"'),
        b'{"do": "device-command", "device": "x0", "name": "y", "arguments": {"self": 1e999}}\n',
        chance.randbytes(30),
    ]
    return b"".join(chance.choices(pieces, k=chance.randrange(1, 12)))


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_clients_send_the_machine_lives_and_serves_others(
    machine_of: Build, place: Path, seed: int, caplog
) -> None:
    """Row 86, fuzzed: each connection ends by itself, and nobody else's."""
    chance = random.Random(seed)

    async def client(sent: bytes, at_once: bool) -> None:
        try:
            async with await connected(place) as stream:
                if at_once:
                    await stream.send_all(sent)
                else:
                    for byte in sent[:200]:
                        await stream.send_all(bytes((byte,)))
                await stream.send_eof()
                async for _ in stream:
                    pass
        except trio.BrokenResourceError:
            return

    before = Census.take().descriptors
    async with machine_of() as machine:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(16):
                    nursery.start_soon(client, hostile_bytes(chance), chance.random() < 0.5)
        assert machine.state == "running"
        assert (await ask("info"))[0]["state"] == "running"
    assert Census.take().descriptors == before
    assert not caplog.records
