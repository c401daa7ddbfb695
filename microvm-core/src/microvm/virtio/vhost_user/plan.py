"""Rings as a front end describes them, and the runs that come of complete descriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

from microvm.errors import QueueError
from microvm.virtio.queue import QueueLayout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm.virtio.vhost_user.message import MemoryRegion, VringAddresses


class Handle(Protocol):
    """A descriptor as the session sees it; `ReceivedFd` of `.signals` is the real one."""

    def fileno(self) -> int:
        """Its number."""

    def close(self) -> None:
        """Close it; again is allowed."""

    def signal(self) -> None:
        """Add one to its counter."""

    def send(self, data: bytes) -> None:
        """Send a short message, or drop it where nobody reads."""

    def prepare_signal(self) -> None:
        """Make sure that it has a counter, or raise `BackendError`."""


@attrs.define(kw_only=True)
class Ring:
    """One ring, as described so far."""

    index: int
    named: bool = False
    enabled: bool = False
    size: int | None = None
    addresses: VringAddresses | None = None
    base: int = 0
    """The available index to begin at; after a run, the one where it ended."""
    kick: Handle | None = None
    call: Handle | None = None
    err: Handle | None = None

    @property
    def complete(self) -> bool:
        """Whether a device can be given this ring."""
        return self.size is not None and self.addresses is not None and self.kick is not None

    def plan(self) -> RingPlan:
        """The ring as it is now, for a run.

        Raises:
            ValueError: it is not complete.
        """
        if self.size is None or self.addresses is None or self.kick is None:
            raise ValueError(f"Ring {self.index} is not complete.")
        return RingPlan(
            ring=self, kick=self.kick, size=self.size, addresses=self.addresses, base=self.base
        )


@attrs.frozen(kw_only=True)
class RingPlan:
    """A ring to run."""

    ring: Ring
    """The live description: its call and err may be replaced during the run."""
    kick: Handle
    size: int
    addresses: VringAddresses
    base: int


@attrs.frozen(kw_only=True)
class RunPlan:
    """A run of the device: what was negotiated, and its rings by index."""

    features: int
    regions: tuple[MemoryRegion, ...]
    rings: tuple[RingPlan, ...]
    paused_at: Mapping[int, int] = attrs.field(factory=dict)
    """Where a run stood, ring by ring, that a pause has ended; empty if none was announced."""

    @property
    def resumed(self) -> bool:
        """Whether the rings go on from an earlier run: a driver that resets begins at 0.

        At 0 stands a ring after each 65536 requests, too. Then it is the pause that tells; but
        where it stood elsewhere, the driver was faster than the pause.
        """
        if any(ring.base for ring in self.rings):
            return True
        return all(self.paused_at.get(ring.ring.index) == 0 for ring in self.rings)

    def layout(self, ring: RingPlan) -> QueueLayout:
        """Where a ring is in guest memory.

        Raises:
            QueueError: not in memory, or not as a ring can be. The driver chose the place; the
                front end only passed it on.
        """
        return QueueLayout(
            size=ring.size,
            desc=self._guest_address(ring.addresses.desc),
            avail=self._guest_address(ring.addresses.avail),
            used=self._guest_address(ring.addresses.used),
        )

    def _guest_address(self, user_address: int) -> int:
        for region in self.regions:
            offset = user_address - region.user_address
            if 0 <= offset < region.size:
                return region.guest_address + offset
        raise QueueError(f"A ring at {user_address:#x} of the front end is not in guest memory.")
