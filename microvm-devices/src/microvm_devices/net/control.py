"""The control queue's commands (virtio 1.2, 5.1.6.5 Control Virtqueue). Pure.

Nothing is allocated by a number of the driver's: a table's length is compared with what is there,
and its content not kept. A filter of received frames is a promise to the driver, not to us: as
long as it is told that frames "may" come through (5.1.6.5.1, 5.1.6.5.2: filtering is best effort),
doing nothing keeps it.
"""

from __future__ import annotations

import struct
from typing import Final

OK: Final = 0
ERR: Final = 1

CLASS_RX: Final = 0
RX_COMMANDS: Final = range(6)
"""PROMISC, ALLMULTI, ALLUNI, NOMULTI, NOUNI, NOBCAST: one byte each, on or off."""
CLASS_MAC: Final = 1
MAC_TABLE_SET: Final = 0
MAC_ADDR_SET: Final = 1
CLASS_MQ: Final = 4
MQ_VQ_PAIRS_SET: Final = 0

_COUNT: Final = struct.Struct("<I")
_PAIRS: Final = struct.Struct("<H")
_MAC_BYTES: Final = 6

MAX_COMMAND_BYTES: Final = 64 * 1024
"""As much of a command is looked at; Linux's largest, with two full tables, has 800."""


class Control:
    """What a driver has set.

    Args:
        mac: The device's address.
        mac_settable: Whether the driver may change it.
        max_pairs: Pairs of queues that the driver has set up.
        multiqueue: Whether MQ was negotiated: before a command, one pair is in use.
    """

    def __init__(self, *, mac: bytes, mac_settable: bool, max_pairs: int, multiqueue: bool) -> None:
        self.mac = mac
        self._mac_settable = mac_settable
        self._max_pairs = max_pairs
        self._multiqueue = multiqueue
        self.pairs = 1
        """In use."""

    def command(self, data: bytes) -> int:
        """Act on a command, class and command code in front; the ack to give."""
        if len(data) < 2:
            return ERR
        body = data[2:]
        kind, code = data[0], data[1]
        if kind == CLASS_RX and code in RX_COMMANDS:
            return OK if len(body) == 1 else ERR
        if kind == CLASS_MAC and code == MAC_TABLE_SET:
            return OK if _is_two_tables(body) else ERR
        if kind == CLASS_MAC and code == MAC_ADDR_SET:
            return self._set_mac(body)
        if kind == CLASS_MQ and code == MQ_VQ_PAIRS_SET:
            return self._set_pairs(body)
        return ERR

    def _set_mac(self, body: bytes) -> int:
        if not self._mac_settable or len(body) != _MAC_BYTES or body[0] & 1 or not any(body):
            return ERR
        self.mac = body
        return OK

    def _set_pairs(self, body: bytes) -> int:
        if not self._multiqueue or len(body) != _PAIRS.size:
            return ERR
        (pairs,) = _PAIRS.unpack(body)
        if not 1 <= pairs <= self._max_pairs:
            return ERR
        self.pairs = pairs
        return OK


def _is_two_tables(body: bytes) -> bool:
    """Unicast and multicast: a count each, and as many addresses."""
    for _ in range(2):
        if len(body) < _COUNT.size:
            return False
        (count,) = _COUNT.unpack_from(body)
        end = _COUNT.size + _MAC_BYTES * count
        if end > len(body):
            return False
        body = body[end:]
    return not body
