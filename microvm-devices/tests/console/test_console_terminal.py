"""The terminal: hvc0. Rows 62, 63 and 64 of the hazard catalogue."""

import itertools
import struct
import subprocess
import sys
import tracemalloc

import pytest
import trio
import trio.lowlevel
import trio.testing

from microvm.consoles.hub import TAP_BYTES
from microvm.errors import ConfigError, GuestGone, QueueError
from microvm.testing.mmio_bench import build
from microvm.testing.queue_driver import QueueDriver, activation
from microvm.virtio.chain import DESC_F_NEXT
from microvm_devices.console import plugin
from microvm_devices.console.device import EMERG_WR, ConsoleDevice
from microvm_devices.console.terminal import PENDING_BYTES
from microvm_devices.console.testing import GuestConsole

SIZE, MULTIPORT, EMERG_WRITE = 1, 2, 4


def device(**options: object) -> ConsoleDevice:
    made = plugin.create(options)
    assert isinstance(made, ConsoleDevice)
    return made


# --- what it says of itself --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "features", "queues", "config"),
    [
        ({}, EMERG_WRITE, 2, (0, 0, 1, 0)),
        ({"size": (80, 25)}, EMERG_WRITE | SIZE, 2, (80, 25, 1, 0)),
        ({"ports": ["a"]}, EMERG_WRITE | MULTIPORT, 6, (0, 0, 2, 0)),
        ({"ports": ["a", "b"], "size": [9, 8]}, 7, 8, (9, 8, 3, 0)),
        ({"ports": "a:b", "size": "9x8"}, 7, 8, (9, 8, 3, 0)),
    ],
)
def test_what_each_console_offers(options, features: int, queues: int, config) -> None:
    console = device(**options)
    assert (console.device_id, console.features) == (3, features)
    assert len(console.queue_max_sizes) == queues
    assert struct.unpack("<HHII", console.read_config(0, 12)) == config


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"port": ["a"]}, "port"),
        ({"ports": "agent:"}, "ports"),
        ({"ports": ["a/b"]}, "ports"),
        ({"ports": [""]}, "ports"),
        ({"ports": [".."]}, "ports"),
        ({"ports": ["x" * 65]}, "ports"),
        ({"ports": ["a", "a"]}, "ports"),
        ({"ports": [str(n) for n in range(32)]}, "ports"),
        ({"ports": 7}, "ports"),
        ({"size": (0, 25)}, "size"),
        ({"size": (80, 0x10000)}, "size"),
        ({"size": 80}, "size"),
        ({"size": "80"}, "size"),
        ({"size": "80x"}, "size"),
        ({"size": "80x-25"}, "size"),
        ({"size": "axb"}, "size"),
        ({"size": (80, 25, 1)}, "size"),
    ],
)
def test_options_that_can_not_be_are_named(options, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugin.create(options)
    assert [problem.where for problem in caught.value.problems] == [where]


def test_the_plugin_is_cheap_to_import() -> None:
    code = (
        "import sys, microvm_devices.console.plugin as p; p.create({'ports': ['a']});"
        " print('trio' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


# --- output and input --------------------------------------------------------------------------


async def test_what_is_printed_is_kept_and_read_along() -> None:
    console = device()
    guest = GuestConsole(console)
    async with console.lifespan(), guest.driving():
        await guest.print(b"early\n")
        async with await console.open_console() as stream:
            assert await stream.receive_some(100) == b"early\n"
            await guest.print(b"late\n")
            assert await stream.receive_some(100) == b"late\n"
    assert console.hub.tail() == ("early", "late")
    assert console.counters()["sent_bytes"] == 11


async def test_what_is_typed_reaches_the_guest_in_order_and_waits_for_its_buffers() -> None:
    console = device()
    guest = GuestConsole(console)
    text = bytes(range(256)) * 40
    async with (
        console.lifespan(),
        guest.driving(),
        await console.open_console() as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(stream.send_all, text)
        assert await guest.read(0, len(text)) == text


async def test_what_is_typed_waits_until_a_driver_of_several_ports_has_the_terminal_open() -> None:
    """Linux's throws away what comes before."""
    console = device(ports=["a"])
    guest = GuestConsole(console)
    await console.send(b"typed early")
    async with console.lifespan():
        async with guest.driving():
            await guest.set_up()
            guest.offer()
            await trio.testing.wait_all_tasks_blocked()
            assert not guest.port(0)[0].used()
            await guest.open(0)
            assert await guest.read(0, 11) == b"typed early"
        await console.send(b"and after a pause")
        async with guest.driving(resume=True):
            assert await guest.read(0, 17) == b"and after a pause"
        await console.send(b"and after a reset")
        async with guest.driving():
            await guest.set_up()
            guest.offer()
            await trio.testing.wait_all_tasks_blocked()
            assert not guest.port(0)[0].used()
            await guest.open(0)
            assert await guest.read(0, 17) == b"and after a reset"


async def test_the_end_of_the_machine_is_the_end_of_every_reader() -> None:
    console = device()
    async with console.lifespan():
        stream = await console.open_console()
        console.hub.feed(b"last words")
    async with stream:
        assert await stream.receive_some(100) == b"last words"
        assert await stream.receive_some(100) == b""
    with pytest.raises(GuestGone):
        await console.open_console()


async def test_a_cancellation_passes_by_a_reader_who_does_not_read() -> None:
    console = device()
    with trio.move_on_after(0.05) as scope:
        async with console.lifespan(), await console.open_console():
            for _ in range(10):
                console.hub.feed(bytes(100_000))
                await trio.lowlevel.checkpoint()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_buffer_for_input_that_nothing_fits_in_is_the_drivers_fault() -> None:
    console = device()
    receive = QueueDriver()
    transmit = QueueDriver(receive.memory, heap=receive.heap)
    receive.add([b"readable"], [])
    await console.send(b"x")
    with pytest.raises(BaseExceptionGroup) as caught:
        await console.run(activation(receive, transmit))
    assert caught.group_contains(QueueError, match="receive into")


# --- the size ----------------------------------------------------------------------------------


async def test_another_size_is_told_by_the_configuration_space() -> None:
    console = device(size=(80, 25))
    guest = GuestConsole(console)
    async with console.lifespan():
        async with guest.driving():
            console.resize(100, 50)
            assert guest.config_changes == 1
            assert struct.unpack("<HH", console.read_config(0, 4)) == (100, 50)
        console.resize(90, 40)
        async with guest.driving(resume=True):
            assert guest.config_changes == 2


async def test_another_size_is_told_by_a_message_where_there_are_ports() -> None:
    console = device(size=(80, 25), ports=["a"])
    guest = GuestConsole(console)
    async with console.lifespan(), guest.driving():
        await guest.set_up()
        console.resize(100, 50)
        guest.queues[2].used()
        assert (0, 5, 0) in await guest.hear()
    assert guest.config_changes == 0


@pytest.mark.parametrize("size", [(0, 1), (1, -1), (1 << 16, 1), (True, 5)])
def test_a_size_that_can_not_be_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="can't be"):
        device(size=(80, 25)).resize(*size)


def test_a_console_without_a_size_gets_none_later() -> None:
    with pytest.raises(ConfigError, match="without a size"):
        device().resize(80, 25)


# --- row 62 ------------------------------------------------------------------------------------


async def test_row_62_a_flood_costs_a_bounded_ring_and_its_losses_are_counted() -> None:
    """Row 62: 256 MiB printed, and a reader that has stopped reading."""
    console = device()
    guest = GuestConsole(console)
    transmit = guest.port(0)[1]
    chunk, count = 1 << 20, 16
    where = 8 << 20  # free: the double's heap begins at the bottom
    guest.memory.write(where, b"flood..\n" * (chunk // 8))
    async with console.lifespan(), guest.driving(), await console.open_console():
        for index in range(count):
            flags = DESC_F_NEXT if index + 1 < count else 0
            transmit.write_descriptor(index, where, chunk, flags, index + 1)
        tracemalloc.start()
        try:
            for turn in range(1, 17):
                transmit.offer(0)
                transmit.kick()
                while console.counters()["requests"] < turn:
                    await trio.lowlevel.checkpoint()
            grown = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        counters = console.counters()
    assert counters["sent_bytes"] == 16 * count * chunk
    assert grown < 4 << 20
    assert console.hub.tail()[-1] == "flood.."
    assert counters["dropped_bytes"] > counters["sent_bytes"] - 4 * TAP_BYTES


async def test_row_62_a_guest_that_prints_is_never_kept_waiting_by_its_readers() -> None:
    """Row 62: the host's reader has stopped."""
    console = device()
    guest = GuestConsole(console)
    async with console.lifespan(), guest.driving(), await console.open_console():
        with trio.fail_after(30):
            for _ in range(100):
                await guest.print(b"x" * 50_000)
    assert console.counters()["dropped_bytes"] > 0


async def test_row_62_input_that_the_guest_does_not_take_is_bounded() -> None:
    """Row 62: who types waits."""
    console = device()
    guest = GuestConsole(console)
    async with console.lifespan(), guest.driving():
        with trio.move_on_after(0.2) as scope:
            await console.send(bytes(1 << 20))
        assert scope.cancelled_caught
        assert len(console._terminal._pending) == PENDING_BYTES


async def test_row_62_several_who_wait_for_the_guest_do_not_keep_each_other_awake() -> None:
    """Row 62: two at the same console, and a guest that takes nothing."""
    console = device()
    guest = GuestConsole(console)
    async with console.lifespan(), guest.driving(), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(console.send, bytes(2 * PENDING_BYTES))
        with trio.fail_after(10):
            await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


# --- row 63 ------------------------------------------------------------------------------------

NASTY = b"\x1b]0;owned\x07" + bytes(range(256)) + b"\xff\xfe\xc3" + "\u202egnp.exe".encode()


async def test_row_63_readers_get_the_bytes_and_people_what_can_be_shown() -> None:
    """Row 63: escape sequences, NUL, invalid UTF-8, and a line of 1 MB."""
    console = device()
    guest = GuestConsole(console)
    async with console.lifespan(), guest.driving():
        await guest.print(NASTY)
        async with await console.open_console() as stream:
            assert await stream.receive_some(1000) == NASTY
        assert all(line.isprintable() for line in console.hub.tail())
        await guest.print(b"\n" + b"y" * (1 << 20))
        line = console.hub.tail()[-1]
        assert line.isprintable()
        assert len(line) < 1000


# --- row 64: emergency writes ------------------------------------------------------------------


def test_row_64_an_emergency_write_needs_no_driver() -> None:
    """Row 64: before anything is set up, of any width, by any thread."""
    bench = build(device())
    bench.driver.reset()
    for character, size in zip(b"oops", itertools.cycle((1, 2, 4, 8)), strict=False):
        bench.transport.write(0x100 + EMERG_WR, size, character)
    bench.transport.write(0x100, 4, 0x41)
    bench.transport.write(0x104, 4, 0x41)
    assert bench.device.hub.tail() == ("oops",)
    assert bench.transport.read(0x100 + EMERG_WR, 4) == 0


@pytest.mark.parametrize(
    ("offset", "data", "printed"),
    [
        (8, b"a", 1),
        (8, b"abcd", 1),
        (4, b"1234a", 1),
        (9, b"a", 0),
        (12, b"a", 0),
        (-1, b"a", 0),
        (8, b"", 0),
        (1 << 40, b"a", 0),
    ],
)
def test_row_64_only_the_one_field_prints(offset: int, data: bytes, printed: int) -> None:
    """Row 64."""
    console = device()
    console.write_config(offset, data)
    assert console.hub.counters()["printed_bytes"] == printed


# --- pauses ------------------------------------------------------------------------------------


async def test_a_pause_in_the_middle_of_a_huge_buffer_prints_nothing_twice() -> None:
    console = device()
    guest = GuestConsole(console)
    text = b"".join(b"%07d\n" % number for number in range(100_000))
    got = bytearray()
    console.hub.feed = got.extend  # type: ignore[method-assign]
    pauses = 0
    async with console.lifespan():
        async with guest.driving():
            guest.port(0)[1].add([text])
        while len(got) < len(text):
            pauses += 1
            before = len(got)
            async with guest.driving(resume=True, settle=False):
                while len(got) < min(len(text), before + 200_000):
                    await trio.lowlevel.checkpoint()
    assert bytes(got) == text
    assert pauses > 2
