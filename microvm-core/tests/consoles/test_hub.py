"""Readers of a console: bounded, and never waited for. Row 62."""

import threading
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from microvm.consoles.client import ConsoleDoor
from microvm.consoles.hub import TAP_BYTES, ConsoleHub, Send
from microvm.testing.census import Census

MIB = 1 << 20


def hub_here() -> ConsoleHub:
    """Fed on the trio thread."""
    return ConsoleHub(lambda call: call())


def joined(nursery: trio.Nursery, hub: ConsoleHub, send: Send) -> trio.SocketStream:
    door = ConsoleDoor(hub, send)
    door.serve_in(nursery)
    return door.open()


async def test_a_reader_begins_with_what_is_kept() -> None:
    hub = hub_here()
    hub.feed(b"before ")
    tap = hub.tap()
    hub.feed(b"after")
    assert await tap.receive() == b"before after"


async def test_the_end_comes_behind_the_last_words() -> None:
    hub = hub_here()
    tap = hub.tap()
    hub.feed(b"panic")
    hub.finish()
    assert [await tap.receive() for _ in range(3)] == [b"panic", b"", b""]
    late = hub.tap()
    with trio.fail_after(30):
        assert [await late.receive() for _ in range(2)] == [b"panic", b""]


async def test_a_reader_that_waits_is_woken_by_bytes_and_by_the_end() -> None:
    hub = hub_here()
    tap = hub.tap()
    got: list[bytes] = []

    async def read() -> None:
        while data := await tap.receive():
            got.append(data)
        got.append(b"end")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        hub.feed(b"one")
        await wait_all_tasks_blocked()
        hub.finish()
    assert got == [b"one", b"end"]


async def test_a_reader_that_waits_is_woken_once_however_much_comes() -> None:
    """Else a flood would fill the loop's own queue while the loop is busy."""
    posted: list[Callable[[], None]] = []
    hub = ConsoleHub(posted.append)
    tap = hub.tap()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tap.receive)
        await wait_all_tasks_blocked()
        for _ in range(100):
            hub.feed(b"flood")
        assert len(posted) == 1
        posted[0]()


async def test_a_flood_past_a_reader_that_does_not_read_is_bounded_and_counted() -> None:
    """Row 62: a gigabyte in 64 KiB pieces."""
    hub = hub_here()
    tap = hub.tap()
    for _ in range(16 * 1024):
        hub.feed(bytes(64 * 1024))
    assert len(tap.waiting) == TAP_BYTES
    assert hub.counters() == {
        "printed_bytes": 1024 * MIB,
        "typed_bytes": 0,
        "dropped_bytes": 1024 * MIB - TAP_BYTES,
    }
    assert len(await tap.receive()) == TAP_BYTES
    hub.feed(b"again")
    assert await tap.receive() == b"again"


async def test_a_reader_that_has_left_costs_nothing() -> None:
    hub = hub_here()
    tap = hub.tap()
    tap.close()
    hub.feed(bytes(4 * MIB))
    assert hub.counters()["dropped_bytes"] == 0
    assert not tap.waiting


async def test_bytes_fed_on_another_thread_arrive_whole_and_in_order() -> None:
    token = trio.lowlevel.current_trio_token()
    hub = ConsoleHub(token.run_sync_soon)
    tap = hub.tap()
    sent = bytes(range(256)) * 400  # within what a reader may be behind
    thread = threading.Thread(target=lambda: [hub.feed(sent[i : i + 1]) for i in range(len(sent))])
    thread.start()
    got = bytearray()
    while len(got) < len(sent):
        got += await tap.receive()
    thread.join()
    assert bytes(got) == sent


async def test_a_client_reads_and_types_and_its_end_ends_it() -> None:
    hub, typed = hub_here(), []
    before = Census.take()

    async def take(data: bytes) -> None:
        typed.append(data)

    async with trio.open_nursery() as nursery:
        hub.feed(b"login: ")
        stream = joined(nursery, hub, take)
        assert await stream.receive_some() == b"login: "
        await stream.send_all(b"root\n")
        await wait_all_tasks_blocked()
        await stream.aclose()
    # The nursery has ended, so the task has, though the guest is silent.
    assert typed == [b"root\n"]
    assert hub.counters()["typed_bytes"] == 5
    assert Census.take() == before


async def test_a_client_of_a_guest_that_does_not_read_holds_up_nobody() -> None:
    hub = hub_here()

    async def never(data: bytes) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        stream = joined(nursery, hub, never)
        with trio.move_on_after(0.1) as scope:
            while True:
                await stream.send_all(bytes(64 * 1024))
        assert scope.cancelled_caught
        hub.feed(b"still here")
        hub.finish()
        async with stream:
            got = b"".join([bytes(chunk) async for chunk in stream])
        assert got == b"still here"


@pytest.mark.parametrize("clients", [1, 64])
async def test_every_client_gets_everything(clients: int) -> None:
    hub = hub_here()
    got: list[bytes] = []

    async def nothing(data: bytes) -> None:
        return

    async def read(stream: trio.SocketStream) -> None:
        async with stream:
            got.append(b"".join([bytes(chunk) async for chunk in stream]))

    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(read, joined(nursery, hub, nothing))
        await wait_all_tasks_blocked()
        hub.feed(b"x" * 100_000)
        hub.finish()
    assert got == [b"x" * 100_000] * clients
