"""Named ports as streams: openings, closings, and what is on its way meanwhile."""

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from microvm.errors import ConfigError, GuestGone
from microvm.virtio.features import RING_EVENT_IDX, RING_FEATURES
from microvm_devices.console import plugin
from microvm_devices.console.control import CONTROL, Event
from microvm_devices.console.device import ConsoleDevice
from microvm_devices.console.testing import GuestConsole

AGENT, LOG = 1, 2
OPEN = Event.PORT_OPEN


@asynccontextmanager
async def driven(ring: int = RING_FEATURES) -> AsyncIterator[tuple[ConsoleDevice, GuestConsole]]:
    """A console with two ports whose driver has set it up."""
    console = plugin.create({"ports": ["agent", "log"]})
    assert isinstance(console, ConsoleDevice)
    guest = GuestConsole(console, ring=ring)
    async with console.lifespan(), guest.driving():
        await guest.set_up()
        yield console, guest


async def quiet() -> None:
    await trio.testing.wait_all_tasks_blocked()


# --- data --------------------------------------------------------------------------------------


async def test_bytes_go_both_ways_each_port_by_itself() -> None:
    async with (
        driven() as (console, guest),
        console.open_port("agent") as agent,
        console.open_port("log") as log,
    ):
        assert sorted(await guest.hear()) == [(AGENT, OPEN, 1), (LOG, OPEN, 1)]
        for number in (AGENT, LOG):
            await guest.open(number)
        await guest.print(b"to the agent", AGENT)
        await guest.print(b"to the log", LOG)
        await agent.send_all(b"from the agent")
        assert await agent.receive_some(100) == b"to the agent"
        assert await log.receive_some(100) == b"to the log"
        assert await guest.read(AGENT, 14) == b"from the agent"


async def test_a_mebibyte_each_way_arrives_whole() -> None:
    data = bytes(range(256)) * 4096
    async with driven() as (console, guest), console.open_port("agent") as agent:
        guest.rx_bytes = 4096
        await guest.open(AGENT)

        async def send() -> None:
            for begin in range(0, len(data), 5000):
                await guest.print(data[begin : begin + 5000], AGENT)
            await guest.close(AGENT)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.send_all, data)
            assert await guest.read(AGENT, len(data)) == data
            nursery.start_soon(send)
            got = b""
            async for part in agent:
                got += part
    assert got == data
    counters = console.counters()
    assert (counters["sent_bytes"], counters["received_bytes"]) == (len(data), len(data))
    assert counters["dropped_bytes"] == 0


async def test_what_the_host_does_not_take_stays_with_the_guest() -> None:
    async with driven() as (console, guest), console.open_port("agent") as agent:
        await guest.open(AGENT)
        transmit = guest.port(AGENT)[1]
        for _ in range(16):
            transmit.add([bytes(100_000)])
        transmit.kick()
        await quiet()
        used = len(transmit.used())
        assert used < 16
        taken = 0
        while taken < 1_600_000:
            taken += len(await agent.receive_some(1 << 20))
        await quiet()
        assert used + len(transmit.used()) == 16


async def test_a_guest_that_has_not_opened_the_port_gets_nothing_yet() -> None:
    async with driven() as (console, guest), console.open_port("agent") as agent:
        await agent.send_all(b"early")
        guest.offer(AGENT)
        await quiet()
        assert guest.port(AGENT)[0].used() == []
        await guest.open(AGENT)
        assert await guest.read(AGENT, 5) == b"early"


# --- openings and closings ---------------------------------------------------------------------


async def test_the_guests_closing_is_the_streams_end_behind_its_last_byte() -> None:
    async with driven() as (console, guest), console.open_port("agent") as agent:
        await guest.open(AGENT)
        transmit = guest.port(AGENT)[1]
        transmit.add([b"last words"])
        await guest.close(AGENT)
        transmit.kick()
        assert await agent.receive_some(100) == b"last words"
        assert await agent.receive_some(100) == b""
        assert (AGENT, OPEN, 0) in await guest.hear()
        async with console.open_port("agent") as anew:
            await guest.open(AGENT)
            await guest.print(b"again", AGENT)
            assert await anew.receive_some(100) == b"again"


async def test_the_hosts_closing_is_told_and_the_port_is_free_again() -> None:
    async with driven() as (console, guest):
        async with console.open_port("agent") as agent:
            await guest.open(AGENT)
            await agent.send_all(b"bye")
        assert await guest.read(AGENT, 3) == b"bye"
        assert [message for message in await guest.hear() if message[0] == AGENT] == [
            (AGENT, OPEN, 1),
            (AGENT, OPEN, 0),
        ]
        async with console.open_port("agent") as anew:
            await anew.send_all(b"hello")
            assert await guest.read(AGENT, 5) == b"hello"


async def test_a_host_that_ends_its_sending_still_hears_the_answer() -> None:
    async with driven() as (console, guest), console.open_port("agent") as agent:
        await guest.open(AGENT)
        await agent.send_all(b"question")
        await agent.send_eof()
        assert await guest.read(AGENT, 8) == b"question"
        await quiet()
        await guest.print(b"answer", AGENT)
        assert await agent.receive_some(100) == b"answer"
        await guest.close(AGENT)
        assert await agent.receive_some(100) == b""


async def test_what_is_sent_to_a_stream_that_is_gone_is_dropped_and_counted() -> None:
    async with driven() as (console, guest):
        async with console.open_port("agent"):
            await guest.open(AGENT)
        await quiet()
        await guest.print(b"to nobody", AGENT)
        assert console.counters()["dropped_bytes"] == 9


async def test_what_was_sent_while_nobody_was_there_waits_and_ends_if_its_sender_has() -> None:
    async with driven() as (console, guest):
        await guest.open(AGENT)
        transmit = guest.port(AGENT)[1]
        transmit.add([b"result"])
        transmit.kick()
        await guest.close(AGENT)
        async with console.open_port("agent") as agent:
            assert await agent.receive_some(100) == b"result"
            assert await agent.receive_some(100) == b""


def change_programs(guest: GuestConsole) -> None:
    """One closes the port and the next opens it, before the device looks at either message."""
    for value in (0, 1):
        guest.queues[3].add([CONTROL.pack(AGENT, OPEN, value)])
    guest.queues[3].kick()


async def test_a_stream_ends_with_its_program_also_where_the_next_one_is_quick() -> None:
    async with driven() as (console, guest), console.open_port("agent") as agent:
        await guest.open(AGENT)
        change_programs(guest)
        with trio.fail_after(5):
            assert await agent.receive_some(100) == b""
        async with console.open_port("agent") as anew:
            await anew.send_all(b"for the second")
            assert await guest.read(AGENT, 14) == b"for the second"


async def test_what_was_for_one_program_is_not_given_to_the_next() -> None:
    """Also while the first one's output has not been taken yet."""
    async with driven() as (console, guest):
        async with console.open_port("agent") as agent:
            await guest.open(AGENT)
            guest.port(AGENT)[1].add([bytes(1_000_000)])
            guest.port(AGENT)[1].kick()
            await quiet()
            change_programs(guest)
            await quiet()
            await agent.send_all(b"for the first")
            guest.offer(AGENT)
            await quiet()
            assert guest.port(AGENT)[0].used() == []
        async with console.open_port("agent") as anew:
            await anew.send_all(b"for the second")
            assert await guest.read(AGENT, 14) == b"for the second"


async def test_a_guest_that_had_come_and_gone_in_silence_ends_no_stream() -> None:
    async with driven() as (console, guest):
        await guest.open(AGENT)
        await guest.close(AGENT)
        async with console.open_port("agent") as agent:
            await quiet()
            await guest.open(AGENT)
            await guest.print(b"now", AGENT)
            assert await agent.receive_some(100) == b"now"


async def test_a_new_program_of_the_guest_is_not_taken_for_the_one_that_had_gone() -> None:
    """Its opening comes by another queue than its data, which the device may see first."""
    async with driven() as (console, guest):
        await guest.open(AGENT)
        await guest.close(AGENT)
        async with console.open_port("agent") as agent:
            await quiet()
            control, transmit = guest.queues[3], guest.port(AGENT)[1]
            control.add([(AGENT).to_bytes(4, "little") + b"\6\0\1\0"])
            transmit.add([b"new"])
            transmit.kick()  # and the doorbell of the control queue not yet
            assert await agent.receive_some(100) == b"new"
            await quiet()
            control.kick()
            await guest.print(b"er", AGENT)
            assert await agent.receive_some(100) == b"er"


@pytest.mark.parametrize("ring", [RING_FEATURES, RING_FEATURES & ~RING_EVENT_IDX])
async def test_a_message_that_is_heard_for_a_ports_sake_is_used_up_like_any_other(
    ring: int,
) -> None:
    """By another task than the queue's own, which may be asleep, or just about to be."""
    async with driven(ring) as (console, guest):
        control = guest.queues[3]
        for turn in range(5):
            control.want_interrupt()
            before = control.irq.triggers
            control.add([CONTROL.pack(AGENT, OPEN, turn & 1)])  # and no doorbell
            console._settle()
            assert len(control.used()) == 1
            assert control.irq.triggers == before + 1
            with trio.fail_after(5):
                await guest.say(LOG, OPEN, turn & 1)


async def drive(guest: GuestConsole, stack: AsyncExitStack, *, resume: bool = False) -> None:
    """Have the device run until the stack is left."""
    await stack.enter_async_context(guest.driving(resume=resume))
    if not resume:
        await guest.set_up()


@pytest.mark.parametrize("where", ["before any driver", "before the program", "in a pause"])
@pytest.mark.parametrize("left", [b"", b"left"])
async def test_a_stream_that_was_closed_before_the_guest_came_is_in_nobodys_way(
    where: str, left: bytes
) -> None:
    console = plugin.create({"ports": ["agent"]})
    guest = GuestConsole(console)
    async with console.lifespan(), AsyncExitStack() as stack:
        if where == "in a pause":
            async with AsyncExitStack() as before:
                await drive(guest, before)
        elif where == "before the program":
            await drive(guest, stack)
        for _ in range(3):
            async with console.open_port("agent") as early:
                if left:
                    await early.send_all(left)
        agent = await stack.enter_async_context(console.open_port("agent"))
        await agent.send_all(b"now")
        if where != "before the program":
            await drive(guest, stack, resume=where == "in a pause")
        await guest.open(AGENT)
        assert await guest.read(AGENT, 3) == b"now"
        await guest.print(b"answer", AGENT)
        assert await agent.receive_some(100) == b"answer"
        assert console.counters()["dropped_bytes"] == 3 * len(left)


async def test_what_a_closed_stream_has_sent_waits_for_the_guest_if_nobody_comes_after_it() -> None:
    async with driven() as (console, guest):
        async with console.open_port("agent") as early:
            await early.send_all(b"for whoever comes")
        await guest.open(AGENT)
        assert await guest.read(AGENT, 17) == b"for whoever comes"
        async with console.open_port("agent") as anew:
            await anew.send_all(b"next")
            assert await guest.read(AGENT, 4) == b"next"


async def test_what_is_on_its_way_to_a_program_of_the_guest_is_not_lost_to_who_comes_next() -> None:
    """A guest that gives no buffers is slow, or means harm: who comes next is told of it."""
    async with driven() as (console, guest):
        await guest.open(AGENT)
        async with console.open_port("agent") as agent:
            await agent.send_all(b"important")
        await quiet()
        with pytest.raises(ConfigError, match="has not taken yet"):
            console.open_port("agent")
        assert await guest.read(AGENT, 9) == b"important"
        await quiet()
        async with console.open_port("agent") as anew:
            await anew.send_all(b"next")
            assert await guest.read(AGENT, 4) == b"next"
    assert console.counters()["dropped_bytes"] == 0


async def test_a_program_of_the_guest_that_takes_nothing_can_be_got_rid_of() -> None:
    async with driven() as (console, guest):
        await guest.open(AGENT)
        async with console.open_port("agent") as agent:
            await agent.send_all(b"to a deaf one")
        await quiet()
        await guest.close(AGENT)
        await guest.open(AGENT)
        async with console.open_port("agent") as anew:
            await anew.send_all(b"next")
            assert await guest.read(AGENT, 4) == b"next"


async def test_a_question_that_was_ended_and_waits_for_its_answer_keeps_the_port() -> None:
    async with driven() as (console, guest), console.open_port("agent") as agent:
        await agent.send_all(b"question")
        await agent.send_eof()
        with pytest.raises(ConfigError, match="open already"):
            console.open_port("agent")
        await guest.open(AGENT)
        assert await guest.read(AGENT, 8) == b"question"
        await guest.print(b"answer", AGENT)
        assert await agent.receive_some(100) == b"answer"


@pytest.mark.parametrize("in_a_pause", [False, True])
async def test_a_stream_does_not_begin_with_the_end_of_what_was_for_another(
    in_a_pause: bool,
) -> None:
    console = plugin.create({"ports": ["agent"]})
    guest = GuestConsole(console)
    async with console.lifespan(), AsyncExitStack() as stack:
        running = await stack.enter_async_context(AsyncExitStack())
        await drive(guest, running)
        await guest.open(AGENT)
        first = await stack.enter_async_context(console.open_port("agent"))
        transmit = guest.port(AGENT)[1]
        transmit.add([b"x" * 1_000_000])
        transmit.kick()
        await quiet()
        sent = console.counters()["sent_bytes"]
        assert 0 < sent < 1_000_000
        await first.send_eof()
        await quiet()
        if in_a_pause:
            await running.aclose()
        second = await stack.enter_async_context(console.open_port("agent"))
        if in_a_pause:
            await drive(guest, stack, resume=True)
        await quiet()
        transmit.add([b"for the second"])
        transmit.kick()
        assert await second.receive_some(100) == b"for the second"
        assert console.counters()["dropped_bytes"] == 1_000_000 - sent


async def test_a_port_has_one_stream_and_a_console_its_ports() -> None:
    async with driven() as (console, _guest), console.open_port("agent"):
        with pytest.raises(ConfigError, match="open already"):
            console.open_port("agent")
        with pytest.raises(ConfigError, match="It has agent, log"):
            console.open_port("gent")


async def test_after_the_machine_streams_are_at_their_end_and_none_is_opened() -> None:
    async with driven() as (console, guest):
        stream = console.open_port("agent")
        await guest.open(AGENT)
        await guest.print(b"last", AGENT)
    async with stream:
        assert await stream.receive_some(100) == b"last"
        assert await stream.receive_some(100) == b""
    with pytest.raises(GuestGone):
        console.open_port("agent")


# --- resets and pauses -------------------------------------------------------------------------


async def test_a_reset_ends_the_streams_that_the_guest_had_to_do_with_and_no_others() -> None:
    console = plugin.create({"ports": ["agent", "log"]})
    guest = GuestConsole(console)
    async with (
        console.lifespan(),
        console.open_port("agent") as agent,
        console.open_port("log") as log,
    ):
        await log.send_all(b"for whoever comes")
        async with guest.driving():
            await guest.set_up()
            await guest.open(AGENT)
        async with guest.driving():
            assert await agent.receive_some(100) == b""
            await guest.set_up()
            await guest.open(LOG)
            assert await guest.read(LOG, 17) == b"for whoever comes"


async def test_a_pause_loses_and_repeats_nothing() -> None:
    console = plugin.create({"ports": ["agent"]})
    guest = GuestConsole(console)
    data = bytes(range(256)) * 2000
    async with console.lifespan(), console.open_port("agent") as agent:
        async with guest.driving():
            await guest.set_up()
            await guest.open(AGENT)
            for begin in range(0, len(data), 100_000):
                guest.port(AGENT)[1].add([data[begin : begin + 100_000]])
            await agent.send_all(b"x" * 200)
            guest.offer(AGENT, count=2)
        got = b""
        while len(got) < len(data):
            async with guest.driving(resume=True):
                got += await agent.receive_some(150_000)
        assert got == data
        async with guest.driving(resume=True):
            assert await guest.read(AGENT, 200) == b"x" * 200


async def test_a_host_without_sockets_is_told_what_to_do(monkeypatch) -> None:
    async with driven() as (console, _guest):

        def refuse() -> None:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(socket, "socketpair", refuse)
            with pytest.raises(Exception, match="ulimit -n"):
                console.open_port("agent")
        async with console.open_port("agent"):
            pass
