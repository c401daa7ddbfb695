"""Addresses to devices, on the vCPUs' threads.

A guest has two buses: memory that is no RAM, and on x86 the ports. Each access is answered where
it happens: a hop to the trio thread and back would cost 36 us, the range's lock and a call cost
0.2. Addresses that nothing answers to read as all ones, take writes without a word, and are
logged once each, up to a bound: a guest may touch as many as it likes.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right, insort
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import attrs

if TYPE_CHECKING:
    from microvm.abc import BusDevice

log = logging.getLogger("microvm.bus")

MAX_STRAYS_LOGGED: Final = 64
"""Linux touches a dozen addresses that do not exist; a hostile guest touches all of them."""


@runtime_checkable
class BlockWriter(Protocol):
    """A device that takes the bytes of a string instruction (``rep outsb``) in one call."""

    def write_block(self, offset: int, size: int, data: bytes) -> None:
        """The guest writes to `offset` once for each `size` bytes of `data`, in that order.

        Called as `BusDevice.write` is.
        """


@attrs.frozen(kw_only=True, eq=False)
class BusRange:
    """Where a device answers."""

    base: int
    size: int
    device: BusDevice
    lock: threading.Lock = attrs.field(factory=threading.Lock, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.base < 0 or self.size < 1:
            raise ValueError(f"A bus range of {self.size} bytes at {self.base:#x}.")

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.base + self.size


class Bus:
    """One address space. `insert` before the vCPUs run; reads and writes from any thread.

    Args:
        name: What its addresses are, for logs: ``port``, ``address``.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._bases: list[int] = []
        self._ranges: list[BusRange] = []
        self._strays: set[int] = set()
        self._last: BusRange | None = None

    def insert(self, base: int, size: int, device: BusDevice) -> BusRange:
        """Let `device` answer to `size` bytes at `base`.

        Raises:
            ValueError: some of them are taken.
        """
        new = BusRange(base=base, size=size, device=device)
        at = bisect_right(self._bases, base)
        before = self._ranges[at - 1] if at else None
        after = self._ranges[at] if at < len(self._ranges) else None
        if (before and before.end > base) or (after and new.end > after.base):
            raise ValueError(f"Bus range {base:#x} to {new.end:#x} overlaps another.")
        insort(self._bases, base)
        self._ranges.insert(at, new)
        return new

    def read(self, address: int, size: int) -> int:
        """What the device at `address` answers; all ones where there is none."""
        found = self.find(address, size)
        if found is None:
            return (1 << 8 * size) - 1
        with found.lock:
            value = found.device.read(address - found.base, size)
        return value & ((1 << 8 * size) - 1)

    def write(self, address: int, size: int, value: int) -> None:
        """Hand a write to the device at `address`, if there is one."""
        found = self.find(address, size)
        if found is not None:
            with found.lock:
                found.device.write(address - found.base, size, value)

    def read_many(self, address: int, size: int, count: int) -> bytes:
        """`count` reads of `size` bytes at one address (``rep insb``), one behind the other."""
        return b"".join(self.read(address, size).to_bytes(size, "little") for _ in range(count))

    def write_many(self, address: int, size: int, data: bytes) -> None:
        """A write to one address for each `size` bytes of `data` (``rep outsb``)."""
        found = self.find(address, size)
        if found is None:
            return
        device = found.device
        with found.lock:
            if isinstance(device, BlockWriter):
                device.write_block(address - found.base, size, data)
                return
            for begin in range(0, len(data), size):
                value = int.from_bytes(data[begin : begin + size], "little")
                device.write(address - found.base, size, value)

    def find(self, address: int, size: int) -> BusRange | None:
        """The range that holds all of the access, if any. Call its device under its lock."""
        # A driver talks to one device for a while. A race over this costs a search, no more.
        last = self._last
        if last is not None and last.base <= address and address + size <= last.end:
            return last
        at = bisect_right(self._bases, address)
        if at:
            found = self._ranges[at - 1]
            if address + size <= found.end:
                self._last = found
                return found
        self._note_stray(address)
        return None

    def _note_stray(self, address: int) -> None:
        if address in self._strays or len(self._strays) >= MAX_STRAYS_LOGGED:
            return
        self._strays.add(address)
        log.debug("The guest used %s %#x, where there is nothing.", self._name, address)
        if len(self._strays) == MAX_STRAYS_LOGGED:
            log.debug("Further %ss where there is nothing are not logged.", self._name)
