"""Files and jobs of an agent that means no good, or is not there any more. Rows 87 and 88."""

import os
import struct

import attrs
import pytest
import trio

from microvm.abc import CopyLimits
from microvm.errors import (
    ConfigError,
    GuestError,
    GuestFileError,
    GuestFileNotFound,
    GuestGone,
    GuestProtocolError,
)
from microvm_guest.protocol.fields import FieldTag, decode_fields
from microvm_guest.protocol.frames import FrameFlag, FrameType, Notice
from microvm_guest.protocol.jobs import JobRecord, encode_job
from microvm_guest.protocol.records import Entry, InfoRecord, Record, RecordKind, encode_error
from microvm_guest.testing import FakeAgent, agent_pair, hello_payload

DONE = Record(RecordKind.DONE).encode()
END = Record(RecordKind.END).encode()


def entry(kind, name=b"", **more):
    return Entry(kind=kind, mode=0o644, mtime_ns=0, name=name, **more).encode()


def info(name=b"", mode=0o100644):
    return InfoRecord(
        mode=mode, uid=0, gid=0, size=2**64 - 1, mtime_ns=0, name=name, target=b""
    ).encode()


FILE = entry(RecordKind.FILE)
DIRECTORY = entry(RecordKind.DIRECTORY)
JOB = JobRecord(
    id=1, pid=70, exit_code=0, signal=0, running=True, log_size=1000, log_begin=0,
    log_end=5, age_ns=1, argv=("x",),
)  # fmt: skip


async def say(agent, records, *, code=0):
    """What an agent's FILES command prints, and how it ends."""
    stream = await agent.start()
    for start in range(0, len(records), 65536):
        await agent.send(FrameType.STDOUT, stream, records[start : start + 65536])
    await agent.send(FrameType.STDOUT, stream, flags=FrameFlag.EOF)
    await agent.send(FrameType.EXIT, stream, struct.pack("<II", code, 0))


async def answering(agent, records, *, code=0):
    await agent.greet()
    await say(agent, records, code=code)
    while (frame := await agent.receive()) is not None:
        if frame.type is FrameType.PING:
            await agent.send(FrameType.PONG, payload=frame.payload)


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(FILE + END, id="no-done"),
        pytest.param(FILE + END + DONE + b"x", id="more-behind-done"),
        pytest.param(FILE + DONE, id="no-end"),
        pytest.param(b"\xff" * 8, id="no-record"),
        pytest.param(info() + DONE, id="another-answer"),
        pytest.param(FILE + END + DONE[:-1], id="cut-short"),
        pytest.param(DIRECTORY + entry(RecordKind.FILE, b"../x") + END + END + DONE, id="dot-dot"),
        pytest.param(
            DIRECTORY
            + entry(RecordKind.SYMLINK, b"l", target=b"..")
            + entry(RecordKind.FILE, b"l")
            + END,
            id="through-a-link",
        ),
    ],
)
async def test_row_87_a_copy_of_lies_is_a_protocol_error_and_leaves_nothing(tmp_path, records):
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(answering, agent, records)
        with pytest.raises(GuestProtocolError, match="broke the protocol with a file"):
            await client.files.copy_out("/x", tmp_path / "out")
        assert await client.ping() >= 0, "it costs that operation, and no other"
        nursery.cancel_scope.cancel()
    assert os.listdir(tmp_path) == []


async def test_done_and_then_a_failure_is_none(tmp_path):
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: answering(agent, FILE + END + DONE, code=1))
        with pytest.raises(GuestProtocolError, match="exit code 1"):
            await client.files.copy_out("/x", tmp_path / "out")
        nursery.cancel_scope.cancel()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "kind"), [(2, GuestFileNotFound), (13, GuestFileError), (4095, GuestFileError)]
)
async def test_the_guests_errors_have_its_number_and_show_no_control_characters(number, kind):
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(answering, agent, encode_error(number, b"/\x1b[2J"))
        with pytest.raises(kind) as caught:
            await client.files.read_bytes("/x")
        nursery.cancel_scope.cancel()
    assert type(caught.value) is kind
    assert caught.value.errno == number
    assert "\x1b" not in str(caught.value)


async def test_who_reads_a_file_that_turns_into_something_else_is_told_where_it_reads():
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(answering, agent, FILE + Record(RecordKind.DATA, b"x").encode() + FILE)
        async with client.files.open_read("/x") as stream:
            assert await stream.receive_some() == b"x"
            with pytest.raises(GuestProtocolError, match="FILE record within a file"):
                await stream.receive_some()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "records",
    [
        info(b"a") + info(b"a") + DONE,
        info(b"../a") + DONE,
        info(b"a", mode=0o644) + DONE,
        info(b"a"),
        FILE + DONE,
    ],
    ids=["one-name-twice", "dot-dot", "no-kind", "no-done", "another-answer"],
)
async def test_a_list_of_lies_is_a_protocol_error(records):
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(answering, agent, records)
        with pytest.raises(GuestProtocolError):
            await client.files.list_dir("/")
        nursery.cancel_scope.cancel()


async def flood(agent, first, again):
    """Say `first`, then `again` without an end, within the window; until let go of."""
    await agent.greet()
    run = await agent.expect(FrameType.RUN)
    window = struct.unpack("<I", dict(decode_fields(run.payload))[FieldTag.WINDOW])[0]
    await agent.send(FrameType.STARTED, run.stream, bytes(4))
    piece = first
    sent = 0
    while True:
        while window < len(piece):
            frame = await agent.receive()
            if frame is None or frame.type is FrameType.CLOSE:
                return sent
            if frame.type is FrameType.WINDOW:
                window += struct.unpack("<II", frame.payload)[1]
        await agent.send(FrameType.STDOUT, run.stream, piece)
        window -= len(piece)
        sent += len(piece)
        piece = again


async def test_row_87_an_endless_file_costs_its_bound_and_leaves_nothing(tmp_path):
    chunk = Record(RecordKind.DATA, bytes(60_000)).encode()
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(flood, agent, FILE, chunk)
        with pytest.raises(GuestError, match="more than 5000000 bytes"):
            await client.files.copy_out(
                "/x", tmp_path / "out", limits=CopyLimits(max_bytes=5_000_000)
            )
    assert os.listdir(tmp_path) == []


async def test_row_87_a_list_without_end_costs_its_bound():
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:

        async def list_for_ever():
            await agent.greet()
            stream = await agent.start()
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                for n in range(10**6):
                    batch = b"".join(info(b"%d-%d" % (n, i)) for i in range(500))
                    await agent.send(FrameType.STDOUT, stream, batch)

        nursery.start_soon(list_for_ever)
        with pytest.raises(GuestError):
            await client.files.list_dir("/", max_entries=5000)
        nursery.cancel_scope.cancel()


async def test_row_88_an_agent_that_hangs_holds_up_who_waits_and_can_be_left(tmp_path):
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:

        async def hang():
            await agent.greet()
            stream = await agent.start()
            await agent.send(FrameType.STDOUT, stream, DIRECTORY + entry(RecordKind.FILE, b"x"))
            await agent.expect(FrameType.CLOSE)
            ping = await agent.expect(FrameType.PING)
            await agent.send(FrameType.PONG, payload=ping.payload)

        nursery.start_soon(hang)
        with trio.move_on_after(0.1) as scope:
            await client.files.copy_out("/x", tmp_path / "out")
        assert scope.cancelled_caught
        await client.ping()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["copy_in", "copy_out", "read", "write", "list"])
async def test_row_88_an_agent_that_dies_in_mid_call_is_gone_and_leaves_nothing(tmp_path, call):
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "source").write_bytes(bytes(5_000_000))

    async def die(agent):
        await agent.greet()
        stream = await agent.start()
        await agent.send(FrameType.STDOUT, stream, DIRECTORY if call == "copy_out" else b"\x0c\0")
        await agent.stream.aclose()

    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(die, agent)
        files = client.files
        with pytest.raises(GuestGone):
            match call:
                case "copy_in":
                    await files.copy_in(tmp_path / "source", "/x")
                case "copy_out":
                    await files.copy_out("/x", place / "out")
                case "read":
                    await files.read_bytes("/x")
                case "write":
                    await files.write_bytes("/x", bytes(5_000_000))
                case "list":
                    await files.list_dir("/x")
    assert os.listdir(place) == []


# --- jobs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        [(FrameType.JOBS, 0, encode_job(attrs.evolve(JOB, exit_code=300)))],
        [(FrameType.JOBS, 0, b"\1")],
        [(FrameType.JOBS, 0, b""), (FrameType.JOBS, 0, b"")],
        [(FrameType.NOTICE, 0, struct.pack("<I", Notice.PAUSING))],
        [(FrameType.NOTICE, 0, struct.pack("<I", 77))],
        [(FrameType.SKIPPED, 1, bytes(8))],
    ],
    ids=["no-such-code", "cut-short", "twice", "a-notice-nobody-sent", "no-notice", "skipped"],
)
async def test_row_87_an_agent_that_lies_of_jobs_is_a_protocol_error(wrong):
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:

        async def lie():
            await agent.greet()
            await agent.expect(FrameType.JOBS)
            for kind, stream, payload in wrong:
                await agent.send(kind, stream, payload)

        nursery.start_soon(lie)
        with pytest.raises(GuestProtocolError):
            await client.jobs()
            await client.ping()


async def test_a_command_that_is_no_job_skips_nothing():
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:

        async def skip():
            await agent.greet()
            stream = await agent.start()
            await agent.send(FrameType.SKIPPED, stream, bytes(8))

        nursery.start_soon(skip)
        with pytest.raises(GuestProtocolError, match="SKIPPED"):
            await client.run(["x"])


async def test_row_88_who_waits_for_a_job_is_told_that_its_end_is_not_known():
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:

        async def script():
            await agent.greet()
            await agent.expect(FrameType.JOBS)
            await agent.send(FrameType.JOBS, payload=encode_job(JOB))
            attach = await agent.expect(FrameType.ATTACH)
            await agent.send(FrameType.STARTED, attach.stream, struct.pack("<I", 1))
            await agent.stream.aclose()

        nursery.start_soon(script)
        job = await client.job(1)
        with pytest.raises(GuestGone):
            await job.wait()
        with pytest.raises(GuestGone):
            await job.status()


async def test_logs_end_where_they_ended_when_they_were_asked_for():
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:

        async def script():
            await agent.greet()
            for _ in range(2):
                await agent.expect(FrameType.JOBS)
                job = attrs.evolve(JOB, log_begin=2, log_end=5)
                await agent.send(FrameType.JOBS, payload=encode_job(job))
            attach = await agent.expect(FrameType.ATTACH)
            await agent.send(FrameType.STARTED, attach.stream, struct.pack("<I", 1))
            await agent.send(FrameType.SKIPPED, attach.stream, struct.pack("<Q", 2))
            await agent.send(FrameType.STDOUT, attach.stream, b"cdefgh")
            await agent.expect(FrameType.CLOSE)

        nursery.start_soon(script)
        assert await (await client.job(1)).logs() == b"cde"


async def logs_when_its_log_is(client, agent, begin, end, frames):
    """What `logs` gives when the agent tells these positions and then sends these frames."""

    async def script():
        await agent.greet()
        for _ in range(2):
            await agent.expect(FrameType.JOBS)
            told = attrs.evolve(JOB, log_begin=begin, log_end=end)
            await agent.send(FrameType.JOBS, payload=encode_job(told))
        attach = await agent.expect(FrameType.ATTACH)
        await agent.send(FrameType.STARTED, attach.stream, struct.pack("<I", 1))
        for kind, payload in frames:
            await agent.send(kind, attach.stream, payload)
        await agent.expect(FrameType.CLOSE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(script)
        return await (await client.job(1)).logs()


async def test_logs_of_a_job_that_prints_faster_than_it_is_read_are_not_empty():
    skipped = (FrameType.SKIPPED, struct.pack("<Q", 9_000))
    async with agent_pair() as (client, agent):
        frames = [skipped, (FrameType.STDOUT, b"later")]
        assert await logs_when_its_log_is(client, agent, 10, 15, frames) == b"later"


async def test_row_87_logs_are_no_more_than_a_log_can_hold():
    """The agent says that all of it is yet to come."""
    async with agent_pair() as (client, agent):
        frames = [(FrameType.STDOUT, b"x" * 1000)] * 3
        logs = await logs_when_its_log_is(client, agent, 2**60, 2**60 + 1500, frames)
        assert logs == b"x" * 1500


# --- an agent of before -------------------------------------------------------------------------


async def test_an_agent_of_before_is_asked_for_nothing_that_it_does_not_know():
    hello = bytearray(hello_payload())
    hello[10:12] = struct.pack("<H", 0)
    async with agent_pair() as (client, agent):
        await agent.send(FrameType.HELLO, payload=bytes(hello))
        await agent.expect(FrameType.HELLO)
        for call in (
            client.files.stat("/"),
            client.spawn_detached(["x"]),
            client.jobs(),
            client.prepare_pause(),
        ):
            with pytest.raises(GuestError, match="too old"):
                await call
        assert isinstance(agent, FakeAgent)


async def test_modes_and_paths_that_are_none_are_the_callers_fault():
    async with agent_pair() as (client, _):
        with pytest.raises(ConfigError):
            async with client.files.open_write("/x", mode=0o10000):
                pass
        for path in ("", "a\0"):
            with pytest.raises(ConfigError):
                await client.files.read_bytes(path)
