"""Ports of the host's that a guest's agent is told of, and nobody else in the guest.

Dialling the host's vsock ports takes no privilege in the guest, and a port says nothing about who
has come (vsock(7)). So whoever waits for the agent alone waits where others would have to guess.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from microvm.errors import ConfigError

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream, Listener

    from microvm.abc import GuestChannels

FIRST_PORT: Final = 1 << 31
"""From here on to the last, 2^32 - 2. Users have the lower ones, and connections that the host
begins those from 2^30 on."""
COUNT: Final = (1 << 31) - 1


def listen_unguessed(channels: GuestChannels) -> tuple[int, Listener[HalfCloseableStream]]:
    """Listen at a port chosen by chance among two thousand million.

    It can still be found, by trying for hours, or, while a connection to it is open, by asking the
    guest's kernel (sock_diag(7)): close the listener as soon as those have come who were expected.
    """
    while True:
        port = FIRST_PORT + secrets.randbelow(COUNT)
        try:
            return port, channels.listen(port)
        except ConfigError:
            continue  # the user has that one
