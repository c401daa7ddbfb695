"""What the network device offers and what a driver took of it. Pure; virtio 1.2, 5.1.3."""

from __future__ import annotations

from typing import Final

import attrs

from microvm.abc import Offload

F_CSUM: Final = 1 << 0
F_GUEST_CSUM: Final = 1 << 1
F_MTU: Final = 1 << 3
F_MAC: Final = 1 << 5
F_GUEST_TSO4: Final = 1 << 7
F_GUEST_TSO6: Final = 1 << 8
F_HOST_TSO4: Final = 1 << 11
F_HOST_TSO6: Final = 1 << 12
F_MRG_RXBUF: Final = 1 << 15
F_STATUS: Final = 1 << 16
F_CTRL_VQ: Final = 1 << 17
F_CTRL_RX: Final = 1 << 18
F_MQ: Final = 1 << 22
F_CTRL_MAC_ADDR: Final = 1 << 23

_PER_OFFLOAD: Final = (
    (Offload.CSUM, F_CSUM, F_GUEST_CSUM),
    (Offload.TSO4, F_HOST_TSO4, F_GUEST_TSO4),
    (Offload.TSO6, F_HOST_TSO6, F_GUEST_TSO6),
)
"""What it is, what lets the driver leave it to us, and what lets us leave it to the driver."""


def offered(offloads: Offload, *, pairs: int, fixed_mac: bool) -> int:
    """The device-type feature bits.

    Args:
        offloads: What the backend can do.
        pairs: Pairs of queues; more than one is MQ.
        fixed_mac: Whether the driver must keep its address.
    """
    bits = F_MAC | F_MTU | F_STATUS | F_MRG_RXBUF | F_CTRL_VQ | F_CTRL_RX
    if pairs > 1:
        bits |= F_MQ
    if not fixed_mac:
        bits |= F_CTRL_MAC_ADDR
    for offload, host, guest in _PER_OFFLOAD:
        # 5.1.3.1 Feature bit requirements: segmentation needs checksums.
        if offload in offloads and Offload.CSUM in offloads:
            bits |= host | guest
    return bits


@attrs.frozen(kw_only=True)
class Negotiated:
    """What a driver took, as the data path asks for it."""

    mergeable: bool
    """Whether one frame may lie in several receive buffers (MRG_RXBUF)."""
    from_driver: Offload
    """What the driver may leave undone in what it sends."""
    to_driver: Offload
    """What we may leave undone in what it receives."""
    control: bool
    """Whether there is a control queue."""
    multiqueue: bool

    @classmethod
    def of(cls, features: int) -> Negotiated:
        """Read the bits that were negotiated.

        A driver that took segmentation without its checksum broke 5.1.3.1; it gets neither.
        """
        from_driver = to_driver = Offload(0)
        for offload, host, guest in _PER_OFFLOAD:
            if features & host and features & F_CSUM:
                from_driver |= offload
            if features & guest and features & F_GUEST_CSUM:
                to_driver |= offload
        control = bool(features & F_CTRL_VQ)
        return cls(
            mergeable=bool(features & F_MRG_RXBUF),
            from_driver=from_driver,
            to_driver=to_driver,
            control=control,
            multiqueue=control and bool(features & F_MQ),
        )
