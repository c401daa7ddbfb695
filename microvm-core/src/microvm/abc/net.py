"""What carries a network device's frames on the host: `NetBackend`, and its `NetLink`s.

A backend is made from options, is cheap, and touches nothing; while its `lifespan` is held open
there are links, and the device sends and receives through them. The device does what virtio asks
(queues, headers, features, limits); a link knows frames, and how to wait.

Nothing of a link blocks. What can't be done now is left, and said so: `send` takes fewer frames,
`receive` answers None, and then the device awaits `wait_writable` or `wait_readable`. That is all
the flow control there is: a guest that offers no buffers makes the device stop receiving, and what
is under the link (a socket, a TAP's queue) fills up and pushes back, or drops.

Frames are sequences of views, where they lie in the guest's memory. The guest may rewrite them at
any moment, also while they are sent: a link that decides by what a frame holds must copy it first
and send the copy. Views must not be kept past the call.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

Frame: TypeAlias = "Sequence[bytes | memoryview]"
"""One frame in pieces, none of them empty."""

VNET_HEADER_BYTES = 12
"""struct virtio_net_hdr_v1 (virtio 1.2, 5.1.6 Device Operation); num_buffers is its last field."""


class Offload(enum.IntFlag):
    """What a link leaves undone in frames that it gives, and finishes in those that it takes."""

    CSUM = 1
    """The checksum of TCP and UDP (VIRTIO_NET_HDR_F_NEEDS_CSUM)."""
    TSO4 = 2
    """Cutting TCP over IPv4 into segments, ECN aside."""
    TSO6 = 4
    """Cutting TCP over IPv6 into segments, ECN aside."""


class NetLink(ABC):
    """One way in and out for frames. For the trio thread.

    If the backend says `vnet_header`, every frame in both directions begins with a
    `VNET_HEADER_BYTES` header, which `send` finds validated (and its num_buffers 0) and whose
    num_buffers `receive` leaves to the device. Else frames begin with the Ethernet header, and
    carry no checksum left undone and no segment too long.
    """

    def accept(self, offloads: Offload) -> None:
        """From now on, leave undone in what `receive` gives no more than `offloads`.

        Called when a driver has begun to use the device; before it, nothing is received. Frames
        that wait already may have more left undone, and the device drops those.
        """
        return

    @abstractmethod
    def send(self, frames: Sequence[Frame]) -> int:
        """Take as many of `frames` as can go now, in order, and return how many that were.

        A frame is taken whole or not at all; a frame that can never be sent counts as taken.
        After fewer than all, the device awaits `wait_writable` and offers the rest again, from
        the first that was not taken; unless its driver was reset meanwhile.

        Raises:
            NetLinkDown: the other side is gone, for good.
        """

    @property
    def blocked(self) -> bool:
        """Whether `wait_writable` must be awaited although `send` took everything.

        For a link that has kept a piece of the last frame for later.
        """
        return False

    @abstractmethod
    def receive(self, buffers: Sequence[memoryview]) -> int | None:
        """Write the next frame into `buffers`, which have a byte or more, in order.

        Returns:
            The bytes of the frame, or None if none is there. What does not fit is lost: then the
            length may be the frame's own, and must be so if it is known.

        Raises:
            NetLinkDown: the other side is gone, for good, and all its frames were received.
        """

    @abstractmethod
    async def wait_readable(self) -> None:
        """Return when `receive` may have a frame. Spurious returns are allowed, if rare.

        One task at a time calls it, and another one `wait_writable`.
        """

    @abstractmethod
    async def wait_writable(self) -> None:
        """Return when `send` may take a frame, and what `blocked` was about is done."""


class NetBackend(ABC):
    """What carries the frames of one network device. A backend that exists can be used.

    Its properties are asked before `lifespan` is entered, and answer the same always.
    """

    @property
    def vnet_header(self) -> bool:
        """Whether frames begin with a virtio_net_hdr_v1; see `NetLink`. Needed for offloads."""
        return False

    @property
    def offloads(self) -> Offload:
        """What the guest's driver is offered, if it wants to."""
        return Offload(0)

    @property
    def mac(self) -> bytes | None:
        """The guest's address (6 bytes), unless the machine's configuration names one."""
        return None

    @property
    def mtu(self) -> int | None:
        """The guest's MTU, unless the machine's configuration names one; None for its default."""
        return None

    @abstractmethod
    def lifespan(self, queues: int) -> AbstractAsyncContextManager[Sequence[NetLink]]:
        """Held open for the machine's whole life: descriptors and processes belong here.

        Args:
            queues: How many pairs of queues the guest may use. For each a link can be given; one
                link serves all of them as well.

        Raises:
            ConfigError: the options name what is not there or can't be used; says what to do.
            BackendError: the host is at fault.
        """


NetLinks: TypeAlias = "AsyncIterator[Sequence[NetLink]]"
"""What a `lifespan` written as a generator, under `asynccontextmanager`, gives."""
