"""Byte streams into a guest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream, Listener


class GuestChannels(ABC):
    """Byte streams between host and guest ports."""

    @abstractmethod
    async def connect(self, port: int) -> HalfCloseableStream:
        """Open a stream to a program that listens on a guest port.

        Waits for the guest's driver to be there; never for a listener.

        Raises:
            GuestRefused: nothing listens on that port.
            GuestGone: the device or machine is gone.
        """

    @abstractmethod
    def listen(self, port: int) -> Listener[HalfCloseableStream]:
        """Take the connections that the guest makes to the host's `port`, from now on.

        The listener's `accept` gives streams; closing it frees the port. Connections beyond
        a small backlog, and those to ports nobody listens on, are refused.

        Raises:
            ConfigError: the port is taken already.
        """
