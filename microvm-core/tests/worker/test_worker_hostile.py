"""A worker that a guest has taken over: a typed error, the machine's end, and bounded memory."""

import array
import contextlib
import json
import logging
import os
import re
import socket
import struct
import tracemalloc

import pytest
import trio
import trio.testing

from microvm import GuestGone, OutcomeReason
from microvm._groups import only_error
from microvm.errors import BackendCrashed, WorkerProtocolError
from microvm.timeline import BootTimeline
from microvm.worker.channels import ACCEPT_AHEAD, WorkerChannels
from microvm.worker.frames import MAX_FRAME_BYTES
from microvm.worker.machine import WorkerMachine
from microvm.worker.wire import MAX_EARLY_DESCRIPTORS, Wire

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Puppet:
    """A `WorkerProcess` whose words a test says."""

    pid = 4242

    def __init__(self):
        self.control, self.far = socket.socketpair()
        self.stderr, self.far_stderr = socket.socketpair()
        self.far.setblocking(False)
        self.returncode = None

    def kill(self):
        self.far.close()
        self.far_stderr.close()
        self.returncode = -9

    async def reap(self):
        await trio.lowlevel.checkpoint()

    def close(self):
        self.kill()
        self.control.close()
        self.stderr.close()

    # --- what it says ---

    async def say(self, data, *descriptors):
        """Bytes as they are, or a message; with descriptors."""
        if not isinstance(data, bytes):
            body = json.dumps(data).encode()
            data = struct.pack(">I", len(body)) + body
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        while data:
            try:
                data = data[self.far.sendmsg([data], ancillary) :]
                ancillary = []
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.far)
        await trio.testing.wait_all_tasks_blocked(0.005)


class Scene:
    """A started machine of a puppet's."""

    def __init__(self):
        self.puppet = Puppet()
        self.channels = WorkerChannels()
        self.machine = WorkerMachine(self.puppet, Wire(self.puppet.control), self.channels)

    async def __aenter__(self):
        self._nursery = trio.open_nursery()
        nursery = await self._nursery.__aenter__()
        nursery.start_soon(self.machine.run)
        nursery.start_soon(self.machine.started, BootTimeline())
        await trio.testing.wait_all_tasks_blocked(0.005)
        await self.puppet.say({"id": 1, "ok": {"marks": []}})
        return self

    async def __aexit__(self, *details):
        self.puppet.kill()
        with trio.CancelScope(shield=True):
            await self.machine.finish()
        await self._nursery.__aexit__(None, None, None)
        self.machine._wire.close()
        self.puppet.close()

    async def ends_for(self, words):
        with trio.fail_after(5):
            outcome = await self.machine.wait()
        assert outcome.reason is OutcomeReason.CRASHED
        assert words in outcome.detail
        with pytest.raises(GuestGone):
            await self.channels.connect(7)


@contextlib.contextmanager
def raises(kind, match):
    """As `pytest.raises`, of the one error in a nursery's group."""
    with pytest.raises(ExceptionGroup) as caught:
        yield
    error = only_error(caught.value)
    assert isinstance(error, kind)
    assert re.search(match, str(error))


def frame(body):
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (struct.pack(">I", 1 << 31), "announced a frame of"),
        (frame(b"nonsense"), "no JSON"),
        (frame(b"[1]"), "no object"),
        (frame(b"[" * 500_000), "no JSON"),
        ({}, "neither an answer nor an event"),
        ({"id": [1]}, "neither an answer nor an event"),
        ({"id": 99, "ok": None}, "an answer to no question"),
        ({"id": 1, "ok": None}, "an answer to no question"),
        ({"event": "party"}, "an event that is none"),
        ({"event": {}}, "an event that is none"),
        ({"event": "outcome"}, "in place of an outcome"),
        ({"event": "outcome", "outcome": {"reason": "bored"}}, "an outcome of no kind"),
        ({"event": "log", "level": "high"}, "a log record that is none"),
        ({"event": "accepted", "listener": 1, "fd": True}, "promised a descriptor"),
        ({"event": "listener_failed", "listener": 1, "error": {}}, "in place of a text"),
    ],
)
async def test_what_is_not_in_the_protocol_ends_the_worker(said, words):
    async with Scene() as scene:
        await scene.puppet.say(said)
        await scene.ends_for(words)


async def test_who_waits_for_an_answer_is_told_of_the_breach():
    async with Scene() as scene:
        with raises(WorkerProtocolError, "no JSON"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scene.machine.pause)
                await trio.testing.wait_all_tasks_blocked(0.005)
                await scene.puppet.say(frame(b"nonsense"))


async def test_a_worker_that_ends_while_something_is_asked_is_a_crash():
    async with Scene() as scene:
        with raises(BackendCrashed, "killed by signal SIGKILL"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scene.machine.pause)
                await trio.testing.wait_all_tasks_blocked(0.005)
                scene.puppet.kill()


async def test_descriptors_that_nobody_asked_for_are_closed():
    async with Scene() as scene:
        null = os.open(os.devnull, os.O_RDONLY)
        for _ in range(3):
            await scene.puppet.say({"event": "log", "level": 10, "logger": "", "text": ""}, null)
        await scene.puppet.say({"event": "accepted", "listener": 5, "fd": True}, null)
        await scene.puppet.say(b"\0" * 3, *[null] * (MAX_EARLY_DESCRIPTORS + 1))
        await scene.ends_for("descriptors that nobody waits for")
        os.close(null)


@pytest.mark.parametrize("kind", ["file", "datagram"])
async def test_a_descriptor_that_is_no_stream_is_refused(kind):
    ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
    null = os.open(os.devnull, os.O_RDONLY)
    async with Scene() as scene:
        with raises(WorkerProtocolError, "no socket|no stream"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scene.channels.connect, 7)
                await trio.testing.wait_all_tasks_blocked(0.005)
                wrong = null if kind == "file" else ours.fileno()
                await scene.puppet.say({"id": 2, "ok": None, "fd": True}, wrong)
    os.close(null)
    ours.close()
    theirs.close()


async def test_more_connections_than_were_asked_for_end_it():
    async with Scene() as scene, scene.channels.listen(9) as listener:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for _ in range(ACCEPT_AHEAD + 1):
                event = {"event": "accepted", "listener": 1, "fd": True}
                await scene.puppet.say(event, theirs.fileno())
        await scene.ends_for("more of a guest's connections")
        for _ in range(ACCEPT_AHEAD):
            await (await listener.accept()).aclose()
        with pytest.raises(GuestGone):
            await listener.accept()


async def test_a_worker_that_owes_an_answer_holds_the_caller_once():
    async with Scene() as scene:
        begin = trio.current_time()
        for _ in range(20):
            assert scene.machine.console_tail() == ()
        assert trio.current_time() - begin < 1


async def test_a_flood_of_log_records_is_cut(caplog):
    caplog.set_level(logging.DEBUG, "microvm")
    record = json.dumps({"event": "log", "level": 99, "logger": "x\n\x1b", "text": "y"}).encode()
    async with Scene() as scene:
        for _ in range(110):
            await scene.puppet.say(frame(record) * 100)
        assert len(caplog.records) <= 10_000
        assert caplog.records[-1].message.endswith("has said enough.")
        assert caplog.records[0].message == "x\n\\x1b: y"


async def test_a_frame_that_never_ends_takes_no_more_than_its_bound():
    async with Scene() as scene:
        tracemalloc.start()
        try:
            await scene.puppet.say(
                struct.pack(">I", MAX_FRAME_BYTES) + b"[" * (MAX_FRAME_BYTES - 1)
            )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 16 << 20
        assert scene.machine._outcome is None


async def test_what_it_prints_is_kept_in_a_ring():
    async with Scene() as scene:
        with trio.socket.from_stdlib_socket(scene.puppet.far_stderr) as stderr:
            for _ in range(200):
                await stderr.send(b"noise " * 1000)
            await stderr.send(b"\nthe last\x1b words\n")
        scene.puppet.kill()
        await scene.ends_for(r"the last\x1b words")
        assert len((await scene.machine.wait()).detail) < 4000
