"""`ConsoleHub`: a guest's console output, kept and handed to whoever reads along."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from microvm.console import ConsoleRing

if TYPE_CHECKING:
    import trio

TAP_BYTES: Final = 256 * 1024
"""What one reader may be behind. A kernel's whole boot log is about 20 KiB."""

Post = Callable[[Callable[[], None]], None]
"""Runs a call on the trio thread soon; from any thread."""


Send = Callable[[bytes], Awaitable[None]]
"""Has the guest receive bytes; waits while it takes none."""


class ConsoleHub:
    """What a guest has printed of late, and those who read along.

    `feed`, `tail` and `counters` are for any thread, the rest for the trio thread.

    Args:
        post: The way from the thread that feeds to the trio thread.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._lock = threading.Lock()
        self._ring = ConsoleRing()
        self._taps: set[ConsoleTap] = set()
        self._followers: tuple[Callable[[bytes], None], ...] = ()
        self._dropped = 0
        self._typed = 0
        self._finished = False

    def feed(self, data: bytes) -> None:
        """Take what the guest printed. Never waits for a reader."""
        with self._lock:
            self._ring.feed(data)
            for tap in self._taps:
                self._dropped += tap.offer(data)
        for output in self._followers:
            output(data)

    def follow(self, output: Callable[[bytes], None]) -> None:
        """Call `output` with all that is fed from now on, on the thread that feeds it."""
        self._followers = (*self._followers, output)

    def tap(self) -> ConsoleTap:
        """Read along from now on, beginning with what is still kept."""
        tap = ConsoleTap(self)
        with self._lock:
            self._taps.add(tap)
            tap.offer(self._ring.contents)
            if self._finished:
                tap.end()
        return tap

    def leave(self, tap: ConsoleTap) -> None:
        """The reader goes: what it has not read is no loss."""
        with self._lock:
            self._taps.discard(tap)

    def finish(self) -> None:
        """The guest prints no more: readers find the end behind what they have left to read."""
        with self._lock:
            self._finished = True
            ended = [tap.end() for tap in self._taps]
        for more in ended:
            if more is not None:
                more.set()

    def count_typed(self, count: int) -> None:
        """So many bytes more were typed for the guest."""
        self._typed += count

    @property
    def contents(self) -> bytes:
        """The last that was printed."""
        with self._lock:
            return self._ring.contents

    def tail(self) -> tuple[str, ...]:
        """As `ConsoleRing.tail`."""
        with self._lock:
            return self._ring.tail()

    def counters(self) -> Mapping[str, int]:
        """As `MachineMetrics.console`."""
        return {
            "printed_bytes": self._ring.total_bytes,
            "typed_bytes": self._typed,
            "dropped_bytes": self._dropped,
        }

    def take(self, tap: ConsoleTap) -> tuple[bytes, trio.Event | None]:
        """What a tap has; and, when that is nothing, what will be set when there is more."""
        import trio

        with self._lock:
            data = bytes(tap.waiting)
            tap.waiting.clear()
            if data or tap.ended:
                return data, None
            tap.more = event = trio.Event()
            return b"", event

    def wake(self, event: trio.Event) -> None:
        """Have a reader go on."""
        self._post(event.set)


class ConsoleTap:
    """One reader's place. All but `receive` and `close` is the hub's, under its lock."""

    def __init__(self, hub: ConsoleHub) -> None:
        self._hub = hub
        self.waiting = bytearray()
        self.more: trio.Event | None = None
        self.ended = False

    async def receive(self) -> bytes:
        """What has been printed since the last call, waiting for some; nothing at the end."""
        while True:
            data, more = self._hub.take(self)
            if more is None:
                return data
            await more.wait()

    def close(self) -> None:
        """Read no more."""
        self._hub.leave(self)

    def offer(self, data: bytes) -> int:
        """Put bytes into the buffer; how many of them found no room."""
        taken = data[: TAP_BYTES - len(self.waiting)]
        self.waiting += taken
        more = self.more
        if taken and more is not None:
            self.more = None
            self._hub.wake(more)
        return len(data) - len(taken)

    def end(self) -> trio.Event | None:
        """Nothing more comes; what its reader waits for, if it does."""
        self.ended = True
        more, self.more = self.more, None
        return more
