"""`VsockDevice`: virtio-vsock (virtio 1.2, 5.10 Socket Device) as a transport sees it."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Final

import attrs

from microvm.abc import GuestChannels, VirtioDevice
from microvm.virtio.ids import DeviceType
from microvm_devices.vsock.packet import VIRTIO_VSOCK_F_STREAM

if TYPE_CHECKING:
    import trio

    from microvm.abc import Activation
    from microvm.config import VsockConfig
    from microvm_devices.vsock.listener import VsockListener
    from microvm_devices.vsock.muxer import VsockMuxer, VsockStatistics
    from microvm_devices.vsock.uds import UdsMux

QUEUE_SIZE: Final = 256
"""Of each queue. Linux fills RX with buffers of one page, 1 MiB of its memory."""

_CONFIG: Final = struct.Struct("<Q")
"""struct virtio_vsock_config: guest_cid (5.10.4)."""


class VsockDevice(VirtioDevice, GuestChannels):
    """The channel between host and guest.

    Streams are `trio.SocketStream`s over AF_UNIX sockets. The guest closing its end, or one
    direction of it, reads as end-of-file, and so does a connection that the guest resets or that
    ends with the machine; if bytes written by the host were not taken by then, the last read
    raises `trio.BrokenResourceError` (ECONNRESET). Writing to what the guest does not read any
    more raises it likewise.

    Everything is for the trio thread. `listen` works from the beginning, `connect` waits for the
    guest's driver, and both raise `GuestGone` after `lifespan`.
    """

    def __init__(self, config: VsockConfig) -> None:
        self._config = config
        self._config_space = _CONFIG.pack(config.guest_cid)

    # Made when first needed: they import trio, and a device is made before the platform's process
    # is launched, which then comes up while that import is under way.

    @cached_property
    def _uds(self) -> UdsMux | None:
        from microvm_devices.vsock.uds import UdsMux

        return UdsMux(self._config.uds_path) if self._config.uds_path is not None else None

    @cached_property
    def _muxer(self) -> VsockMuxer:
        from microvm_devices.vsock.muxer import VsockMuxer

        dial_host = self._uds.dial_host if self._uds is not None else None
        return VsockMuxer(self._config.guest_cid, dial_host)

    # --- VirtioDevice --------------------------------------------------------------------

    @property
    def device_id(self) -> int:
        """19."""
        return DeviceType.VSOCK

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        """RX, TX and event (5.10.2). Nothing is ever put into the last: it is for migration."""
        return (QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE)

    @property
    def features(self) -> int:
        """Streams, and nothing else (5.10.3)."""
        return VIRTIO_VSOCK_F_STREAM

    def read_config(self, offset: int, length: int) -> bytes:
        """The guest's CID, which the driver can't change."""
        if offset < 0:
            return bytes(length)
        return self._config_space[offset : offset + length].ljust(length, b"\0")

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Serve the AF_UNIX socket, if there is one.

        Raises:
            ConfigError: its path can't be used.
        """
        if self._uds is None:
            async with self._muxer.lifespan():
                yield
            return
        uds = self._uds
        async with uds.bound(), self._muxer.lifespan(lambda: uds.serve(self._dial_for_client)):
            yield

    async def run(self, activation: Activation) -> None:
        """As `VirtioDevice.run`."""
        await self._muxer.serve(activation)

    def reset(self) -> None:
        """The guest has forgotten its connections, and so do we."""
        self._muxer.reset()

    # --- GuestChannels -------------------------------------------------------------------

    async def connect(self, port: int) -> trio.SocketStream:
        """As `GuestChannels.connect`."""
        return await self._muxer.connect(port)

    def listen(self, port: int) -> VsockListener:
        """As `GuestChannels.listen`. Connections are accepted before the program looks."""
        return self._muxer.listen(port)

    def counters(self) -> Mapping[str, int]:
        """As `VirtioDevice.counters`: `VsockStatistics`, by name."""
        return attrs.asdict(self.statistics)

    @property
    def statistics(self) -> VsockStatistics:
        """The device's counters now."""
        return self._muxer.statistics

    async def _dial_for_client(self, sock: socket.socket, port: int) -> None:
        try:
            await self._muxer.wait_active()
        except BaseException:
            sock.close()
            raise
        await self._muxer.dial_guest(sock, port, greet=True)
