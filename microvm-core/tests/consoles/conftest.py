"""A console without a machine, for sinks to be served with."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from microvm.abc import ConsoleSink
from microvm.consoles.client import ConsoleDoor
from microvm.consoles.hub import ConsoleHub
from microvm.testing.census import Census


class Bench:
    """A guest that prints what the test says; `typed` is what it was sent."""

    def __init__(self) -> None:
        self.hub = ConsoleHub(lambda call: call())
        self.typed = bytearray()
        self.reads = True
        self.ended = trio.Event()

    async def take(self, data: bytes) -> None:
        if not self.reads:
            await trio.sleep_forever()
        self.typed += data

    async def until_typed(self, data: bytes) -> None:
        with trio.fail_after(30):
            while self.typed != data:  # noqa: ASYNC110 - it is memory that changes
                await trio.sleep(0.001)


Served = Callable[[ConsoleSink], AbstractAsyncContextManager[Bench]]


@pytest.fixture
def served() -> Served:
    """Serve a sink; at the end of the block the guest prints no more, and the sink must end."""

    @asynccontextmanager
    async def serve(sink: ConsoleSink) -> AsyncIterator[Bench]:
        bench = Bench()
        before = Census.take()

        door = ConsoleDoor(bench.hub, bench.take)

        async def run() -> None:
            async with door.open() as console:
                await sink.serve(console)
            bench.ended.set()

        async with sink.lifespan(), trio.open_nursery() as nursery:
            door.serve_in(nursery)
            nursery.start_soon(run)
            yield bench
            bench.hub.finish()
            with trio.fail_after(30):
                await bench.ended.wait()
        assert Census.take().descriptors == before.descriptors

    return serve
