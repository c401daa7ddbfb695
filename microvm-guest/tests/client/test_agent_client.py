"""`AgentClient` against a scripted agent: what it makes of a good one, and of every bad one.

Long, since each verb has its good agent and its bad ones here.
"""

import signal
import struct

import pytest
import trio
import trio.testing

from microvm.abc import TtySize
from microvm.errors import (
    CommandFailed,
    ConfigError,
    GuestError,
    GuestGone,
    GuestProtocolError,
)
from microvm_guest._streams import StreamBroken
from microvm_guest.client import open_client
from microvm_guest.protocol.frames import FrameFlag, FrameType, Notice
from microvm_guest.testing import FakeAgent, FakeCommand, agent_pair, fake_guest, hello_payload

COMMANDS = {
    "true": FakeCommand(),
    "false": FakeCommand(exit_code=1, stderr=b"no\x1b[0m"),
    "both": FakeCommand(stdout=b"out", stderr=b"err", exit_code=7),
    "killed": FakeCommand(signal=15),
    "cat": FakeCommand(echo=True),
    "big": FakeCommand(stdout=bytes(3_000_000)),
    "sleep": FakeCommand(hang=True),
    "chatty": FakeCommand(stdout=b"ready", hang=True),
}


def two(first, second):
    return struct.pack("<II", first, second)


def served():
    return fake_guest(COMMANDS)


# --- run -----------------------------------------------------------------------------------


async def test_a_result_has_both_streams_apart_and_the_exit_code():
    async with served() as (client, _):
        result = await client.run(["both", "x"])
        assert (result.stdout, result.stderr, result.exit_code) == (b"out", b"err", 7)
        assert result.argv == ("both", "x")
        assert result.signal is None


async def test_a_signal_is_no_exit_code():
    async with served() as (client, _):
        result = await client.run(["killed"])
        assert (result.exit_code, result.signal, result.returncode) == (None, 15, 143)


async def test_check_raises_with_the_commands_stderr_made_printable():
    async with served() as (client, _):
        with pytest.raises(CommandFailed, match="code 1") as caught:
            await client.run(["false"], check=True)
        assert "no\\x1b[0m" in str(caught.value)
        assert (await client.run(["true"], check=True)).success


async def test_stdin_larger_than_every_window_comes_back_whole():
    data = bytes(range(256)) * 8000
    async with served() as (client, _):
        assert (await client.run(["cat"], stdin=data)).stdout == data


async def test_output_larger_than_the_window_is_granted_on():
    async with served() as (client, _):
        assert len((await client.run(["big"])).stdout) == 3_000_000


async def test_output_past_its_bound_kills_the_command_and_is_the_guests_error():
    async with served() as (client, agent):
        with pytest.raises(GuestError, match="more than 1000 bytes on stdout"):
            await client.run(["big"], max_output_bytes=1000)
        assert (await client.run(["true"])).success
        assert agent.killed == [9]


async def test_a_program_that_is_not_there_is_the_guests_error_with_a_remedy():
    async with served() as (client, _):
        with pytest.raises(GuestError, match="did not start 'nope'") as caught:
            await client.run(["nope"])
        assert "PATH" in caught.value.remedy


async def test_a_command_that_needs_no_stdin_to_end_takes_none_of_it():
    async with served() as (client, _):
        assert (await client.run(["true"], stdin=bytes(1_000_000))).success


async def test_what_no_guest_can_be_told_is_the_callers_error():
    async with served() as (client, agent):
        with pytest.raises(ConfigError):
            await client.run([])
        assert agent.runs == []


async def test_cancelling_kills_the_command_before_any_later_request():
    async with served() as (client, agent):
        with trio.move_on_after(0) as scope:
            await client.run(["true"])
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run, ["sleep"])
            await trio.testing.wait_all_tasks_blocked()
            assert ("sleep",) in agent.runs
            nursery.cancel_scope.cancel()
        await client.run(["true"])
        assert agent.killed == [9]


async def test_many_commands_at_once_each_get_their_own():
    async with served() as (client, _):
        outputs = {}

        async def one(number):
            data = b"%d" % number * 1000
            outputs[number] = (await client.run(["cat"], stdin=data)).stdout == data

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)
        assert outputs == dict.fromkeys(range(50), True)


# --- spawn ---------------------------------------------------------------------------------


async def test_a_spawned_command_has_streams_and_an_end():
    async with served() as (client, _), client.spawn(["cat"]) as process:
        await process.stdin.send_all(b"hello")
        assert await process.stdout.receive_some() == b"hello"
        await process.stdin.aclose()
        assert await process.stdout.receive_some() == b""
        assert await process.stderr.receive_some() == b""
        assert (await process.wait()).exit_code == 0


async def test_a_part_of_what_came_can_be_asked_for():
    async with served() as (client, _), client.spawn(["both"]) as process:
        assert await process.stdout.receive_some(2) == b"ou"
        assert await process.stdout.receive_some(2) == b"t"
        assert await process.stdout.receive_some(2) == b""
        with pytest.raises(ValueError):
            await process.stdout.receive_some(0)


async def test_leaving_the_block_kills_what_still_runs():
    async with served() as (client, agent):
        async with client.spawn(["sleep"]):
            pass
        await client.run(["true"])
        assert agent.killed == [9]


async def test_leaving_the_block_of_a_command_that_ended_kills_nothing():
    async with served() as (client, agent):
        async with client.spawn(["true"]) as process:
            await process.wait()
        await client.run(["true"])
        assert agent.killed == []


async def test_after_the_block_its_streams_are_closed():
    async with served() as (client, _):
        async with client.spawn(["sleep"]) as process:
            pass
        with pytest.raises(trio.ClosedResourceError):
            await process.stdin.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await process.stdout.receive_some()
        with pytest.raises(GuestGone):
            await process.wait()


async def test_spawning_what_cannot_start_raises_on_entry():
    async with served() as (client, _):
        with pytest.raises(GuestError, match="nope"):
            async with client.spawn(["nope"]):
                raise AssertionError("the block was entered")


async def test_a_signal_reaches_the_command():
    async with served() as (client, agent), client.spawn(["sleep"]) as process:
        await process.send_signal(signal.SIGTERM)
        assert (await process.wait()).signal == signal.SIGTERM
        assert agent.killed == [signal.SIGTERM]


async def test_a_terminal_has_one_output_and_can_be_resized():
    async with agent_pair() as (client, agent):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.greet)
        async with trio.open_nursery() as nursery:
            streams = []

            async def script():
                streams.append(await agent.start())
                frame = await agent.expect(FrameType.RESIZE)
                streams.append(struct.unpack("<HH", frame.payload))

            nursery.start_soon(script)
            async with client.spawn(["sh"], tty=TtySize(rows=2, cols=3)) as process:
                assert await process.stderr.receive_some() == b""
                await process.resize(TtySize(rows=50, cols=100))
                await trio.testing.wait_all_tasks_blocked()
        assert streams == [1, (50, 100)]


async def test_an_unread_command_holds_up_only_itself():
    async with served() as (client, _), client.spawn(["big"]) as process:
        assert (await client.run(["true"])).success
        received = 0
        async for chunk in process.stdout:
            received += len(chunk)
        assert received == 3_000_000


async def test_closing_an_output_lets_the_command_go_on():
    async with served() as (client, _), client.spawn(["big"]) as process:
        await process.stdout.aclose()
        assert (await process.wait()).exit_code == 0


async def test_two_readers_of_one_stream_are_refused():
    async with (
        served() as (client, _),
        client.spawn(["sleep"]) as process,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(process.stdout.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await process.stdout.receive_some()
        nursery.cancel_scope.cancel()


async def test_writing_to_a_command_that_has_ended_is_a_broken_stream():
    async with served() as (client, _), client.spawn(["true"]) as process:
        await process.wait()
        with pytest.raises(trio.BrokenResourceError):
            await process.stdin.send_all(b"x")
        await process.stdin.aclose()


async def test_writing_to_a_command_that_has_closed_its_stdin_is_a_broken_stream():
    async with agent_pair() as (client, agent):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.greet)

        async def script():
            stream = await agent.start()
            await agent.send(FrameType.WINDOW, stream, two(0, 0), FrameFlag.CLOSED)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(script)
            async with client.spawn(["head"]) as process:
                with pytest.raises(trio.BrokenResourceError, match="closed its stdin"):
                    await process.stdin.send_all(bytes(1_000_000))
                assert await process.stdin.aclose() is None


# --- the rest ------------------------------------------------------------------------------


async def test_ping_status_and_shutdown():
    async with served() as (client, _):
        assert await client.ping() >= 0
        assert await client.status() == {"pid": 1}
        await client.shutdown()
        await client.shutdown()
        with pytest.raises(GuestGone):
            await client.run(["true"])


async def test_a_cancelled_ping_does_not_disturb_the_next():
    async with served() as (client, _):
        with trio.move_on_after(0):
            await client.ping()
        with trio.move_on_after(0):
            await client.status()
        assert await client.ping() >= 0
        assert await client.status() == {"pid": 1}


async def test_requests_follow_the_hosts_hello_without_waiting_for_the_agents():
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(client.run, ["true"])
        await agent.expect(FrameType.HELLO)
        run = await agent.expect(FrameType.RUN)
        await agent.send(FrameType.HELLO, payload=hello_payload())
        await agent.send(FrameType.STARTED, run.stream, bytes(4))
        await agent.finish(run.stream)


async def test_a_guest_that_goes_without_an_answer_has_agreed_to_its_shutdown():
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(client.shutdown)
        await agent.greet()
        await agent.expect(FrameType.SHUTDOWN)
        await agent.stream.aclose()


async def test_the_clock_can_be_set():
    async with agent_pair() as (client, agent):
        await client.set_clock(5)
        await agent.greet()
        assert (await agent.expect(FrameType.SET_CLOCK)).payload == struct.pack("<Q", 5)


def noticed(agent):
    """A list of the notices that come, and what answers them."""
    seen = []

    async def answer():
        while (frame := await agent.receive()) is not None:
            assert frame.type is FrameType.NOTICE
            seen.append(Notice(struct.unpack_from("<I", frame.payload)[0]))
            await agent.send(FrameType.NOTICE, payload=frame.payload[:4])

    return seen, answer


async def test_a_clock_that_was_set_back_is_told_before_the_time_that_is_made_up_for():
    """So that what the first word lost on its way is not lost for long."""
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        await agent.greet()
        seen, answer = noticed(agent)
        nursery.start_soon(answer)
        await client.catch_up_clock()
        assert set(seen) == {Notice.RESUMED}
        seen.clear()
        await client.catch_up_clock(set_back=True)
        assert seen[0] is Notice.CLOCK_SET_BACK
        assert set(seen[1:]) == {Notice.RESUMED}
        nursery.cancel_scope.cancel()


async def test_an_agent_that_knows_of_no_clock_set_back_is_told_what_it_knows():
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        await agent.send(FrameType.HELLO, payload=hello_payload(minor=1))
        await agent.expect(FrameType.HELLO)
        seen, answer = noticed(agent)
        nursery.start_soon(answer)
        await client.catch_up_clock(set_back=True)
        assert set(seen) == {Notice.RESUMED}
        nursery.cancel_scope.cancel()


# --- bad agents ----------------------------------------------------------------------------


async def hang_up(agent):
    await agent.stream.aclose()


async def talk_garbage(agent):
    await agent.stream.send_all(b"Kernel panic - not syncing: Attempted to kill init!\n")


@pytest.mark.parametrize(
    ("misbehave", "error"), [(hang_up, GuestGone), (talk_garbage, GuestProtocolError)]
)
async def test_when_the_agent_goes_or_talks_garbage_everybody_who_waits_is_told(misbehave, error):
    raised = {}

    async def one(name, call, *args):
        try:
            await call(*args)
        except GuestError as caught:
            raised[name] = type(caught)

    async with agent_pair() as (client, agent):

        async def spawned():
            async with client.spawn(["sleep"]) as process, trio.open_nursery() as nursery:
                nursery.start_soon(one, "stdout", process.stdout.receive_some)
                nursery.start_soon(one, "stdin", process.stdin.send_all, bytes(1_000_000))
                nursery.start_soon(one, "wait", process.wait)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(spawned)
            await agent.greet()
            await agent.start()
            nursery.start_soon(one, "run", client.run, ["sleep"])
            nursery.start_soon(one, "ping", client.ping)
            nursery.start_soon(one, "status", client.status)
            await trio.testing.wait_all_tasks_blocked()
            await misbehave(agent)
        await one("afterwards", client.run, ["true"])
    streams = dict.fromkeys(["stdout", "stdin"], StreamBroken)
    assert raised == streams | dict.fromkeys(["wait", "run", "ping", "status", "afterwards"], error)


async def test_an_agent_that_never_answers_holds_up_only_who_waits_and_can_be_cancelled():
    async with agent_pair() as (client, _):
        with trio.move_on_after(0.01) as scope:
            await client.run(["true"])
        assert scope.cancelled_caught
        with trio.move_on_after(0.01) as scope:
            await client.wait_hello()
        assert scope.cancelled_caught


async def test_an_agent_that_dies_in_mid_frame_is_gone():
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:

        async def script():
            await agent.greet()
            await agent.start()
            await agent.stream.send_all(b"\x05\0\0\0\x13")
            await agent.stream.aclose()

        nursery.start_soon(script)
        with pytest.raises(GuestGone):
            await client.run(["sleep"])


async def test_an_agent_that_refuses_the_connection_is_quoted():
    async with agent_pair() as (client, agent):
        await agent.send(FrameType.ERROR, payload=struct.pack("<I", 2) + b"too many")
        with pytest.raises(GuestProtocolError, match="too many"):
            await client.wait_hello()


async def say(agent, *frames):
    await agent.greet()
    stream = await agent.start()
    for kind, which, payload, flags in frames:
        await agent.send(kind, stream if which is None else which, payload, flags)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([(FrameType.EXIT, None, two(2**31, 0), 0)], id="exit-code-2^31"),
        pytest.param([(FrameType.EXIT, None, two(0, 0), 0)], id="exit-before-the-outputs-end"),
        pytest.param([(FrameType.STDOUT, 77, b"x", 0)], id="wrong-stream"),
        pytest.param([(FrameType.PONG, 0, bytes(8), 0)], id="pong-to-no-ping"),
        pytest.param([(FrameType.STATUS, 0, b"", 0)], id="status-nobody-asked-for"),
        pytest.param([(FrameType.STARTED, None, bytes(4), 0)], id="started-twice"),
        pytest.param([(FrameType.HELLO, 0, hello_payload(), 0)], id="hello-twice"),
        pytest.param([(FrameType.STDOUT, None, bytes(65536), 0)] * 9, id="past-the-window"),
        pytest.param([(FrameType.WINDOW, None, two(0, 1), 0)], id="credit-for-nothing"),
        pytest.param([(FrameType.STDOUT, None, b"", 0)], id="empty-output"),
    ],
)
async def test_an_agent_that_lies_is_a_protocol_error_at_once(frames):
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(say, agent, *frames)
        with pytest.raises(GuestProtocolError):
            async with client.spawn(["x"]) as process:
                await process.wait()


async def test_ten_gigabytes_of_stdout_cost_the_bound_and_a_window():
    """An agent that heeds neither CLOSE nor the window loses its connection."""
    accepted = 0

    async def flood(agent):
        nonlocal accepted
        await agent.greet()
        stream = await agent.start()
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(10 * 1024**3 // 65536):
                await agent.send(FrameType.STDOUT, stream, bytes(65536))
                accepted += 65536

    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:
        nursery.start_soon(flood, agent)
        with pytest.raises(GuestError, match="more than 1000000 bytes"):
            await client.run(["yes"], max_output_bytes=1_000_000)
        with pytest.raises(GuestProtocolError, match="more STDOUT than the window"):
            await client.ping()
    assert accepted < 8 * 1024 * 1024


async def test_a_killed_command_that_goes_on_printing_is_not_kept():
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:

        async def script():
            await agent.greet()
            stream = await agent.start()
            await agent.expect(FrameType.CLOSE)
            for _ in range(8):
                await agent.send(FrameType.STDOUT, stream, bytes(65536))
            await agent.send(FrameType.EXIT, stream, two(0, 9))
            ping = await agent.expect(FrameType.PING)
            await agent.send(FrameType.PONG, payload=ping.payload)

        nursery.start_soon(script)
        async with client.spawn(["yes"]) as process:
            pass
        await client.ping()
        assert not process.stdout._chunks


async def test_the_bodys_error_comes_out_of_the_client_as_it_is():
    near, _far = trio.testing.memory_stream_pair()
    with pytest.raises(KeyError):
        async with open_client(near):
            raise KeyError


async def test_closing_the_client_tells_who_still_waits():
    near, far = trio.testing.memory_stream_pair()
    agent = FakeAgent(far)
    raised = []
    async with trio.open_nursery() as nursery:
        async with open_client(near) as client:

            async def one():
                with pytest.raises(GuestGone):
                    await client.run(["sleep"])
                raised.append(True)

            nursery.start_soon(one)
            nursery.start_soon(agent.serve, COMMANDS)
            await trio.testing.wait_all_tasks_blocked()
        await far.aclose()
    assert raised == [True]


def test_a_broken_stream_is_both_the_guests_error_and_trios():
    assert issubclass(StreamBroken, GuestGone)
    assert issubclass(StreamBroken, trio.BrokenResourceError)
