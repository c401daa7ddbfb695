"""`Terminal`: port 0, which Linux calls hvc0, between the guest and whoever reads along.

Output never waits: Linux prints to hvc0 with a spinlock held, and spins until the device has used
the buffer. It goes into a `ConsoleHub`, which keeps the last bytes and hands them to readers, each
with a bound; what a slow reader misses is counted. Input waits, in a small buffer, until the
guest takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from microvm.virtio.chain import ChainWriter
from microvm_devices.console.queues import next_buffer, next_chain

if TYPE_CHECKING:
    import trio

    from microvm.abc import ActiveQueue
    from microvm.consoles.hub import ConsoleHub
    from microvm.virtio.chain import DescriptorChain

PENDING_BYTES: Final = 4096
"""What may wait for the guest; who types more waits too."""
PIECE_BYTES: Final = 64 * 1024
"""Of a buffer that is larger, so much is taken before other tasks have their turn."""


class Terminal:
    """Both directions of port 0. Everything but `ConsoleHub.feed` is for the trio thread.

    Args:
        hub: Where output goes.
    """

    def __init__(self, hub: ConsoleHub) -> None:
        self._hub = hub
        self._pending = bytearray()
        self._held = False
        self._changed: trio.Event | None = None
        self._taken = 0
        """Of the chain that is being taken: a pause may come in the middle of it."""
        self.requests = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    def reset(self) -> None:
        """The guest begins anew; what was typed for it is still to come."""
        self._taken = 0

    # --- output ------------------------------------------------------------------------------

    async def serve_output(self, active: ActiveQueue) -> None:
        """Take what the guest prints, for as long as the run lasts.

        Raises:
            GuestError: the driver broke a rule.
        """
        import trio

        while True:
            chain = await next_chain(active)
            await self._take(chain)
            active.queue.add_used(chain.head, 0)
            self.requests += 1
            await trio.lowlevel.checkpoint()

    async def _take(self, chain: DescriptorChain) -> None:
        import trio

        position = 0
        for view in chain.readable:
            for begin in range(0, len(view), PIECE_BYTES):
                piece = view[begin : begin + PIECE_BYTES]
                position += len(piece)
                if position <= self._taken:
                    continue
                self._hub.feed(bytes(piece))
                self.sent_bytes += len(piece)
                self._taken = position
                if position < chain.readable_len:
                    await trio.lowlevel.checkpoint()
        self._taken = 0

    # --- input -------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Have bytes typed; waits while the guest takes none."""
        import trio

        await trio.lowlevel.checkpoint()
        left = memoryview(data)
        while left:
            taken = left[: PENDING_BYTES - len(self._pending)]
            self._pending += taken
            left = left[len(taken) :]
            if taken:  # else several who wait would wake each other without end
                self._change()
            if left:
                await self._wait_for_change()

    def hold(self, held: bool) -> None:
        """Whether what is typed is to wait, for a driver that is known to throw it away still."""
        self._held = held
        self._change()

    async def serve_input(self, active: ActiveQueue) -> None:
        """Give the guest what is typed, for as long as the run lasts.

        Raises:
            GuestError: the driver broke a rule.
        """
        active.queue.disable_notification()
        while True:
            while self._held or not self._pending:
                await self._wait_for_change()
            chain = await next_buffer(active)
            writer = ChainWriter(chain)
            writer.write(self._pending[: writer.remaining])
            del self._pending[: writer.written]
            active.queue.add_used(chain.head, writer.written)
            self.requests += 1
            self.received_bytes += writer.written
            active.notify()
            self._change()

    def _change(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _wait_for_change(self) -> None:
        import trio

        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()
