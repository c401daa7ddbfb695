"""`NetDevice`: virtio-net (virtio 1.2, 5.1 Network Device) as a transport sees it."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from microvm.abc import Offload, VirtioDevice
from microvm.errors import QueueError
from microvm.virtio.ids import DeviceType
from microvm.virtio.rate_limit import RateLimiter
from microvm_devices.net.control import MAX_COMMAND_BYTES, Control
from microvm_devices.net.counts import Counts
from microvm_devices.net.features import Negotiated, offered
from microvm_devices.net.packet import (
    ETHERNET_BYTES,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    VLAN_BYTES,
    ReceiveRules,
    TransmitRules,
    gather,
)

if TYPE_CHECKING:
    import trio

    from microvm.abc import Activation, ActiveQueue, NetBackend
    from microvm_devices.net.capture import CaptureFile
    from microvm_devices.net.port import Port
    from microvm_devices.net.receive import ReceiveQueue
    from microvm_devices.net.settings import NetSettings

QUEUE_SIZE: Final = 256
"""Of receive and transmit queues; a receive queue full of one-page buffers holds 16 of the longest
frames."""
CONTROL_QUEUE_SIZE: Final = 64

_CONFIG: Final = struct.Struct("<6sHHH")
"""struct virtio_net_config up to mtu: mac, status, max_virtqueue_pairs, mtu (5.1.4)."""
S_LINK_UP: Final = 1


class NetDevice(VirtioDevice):
    """A network card whose frames a `NetBackend` carries.

    Everything is for the trio thread. Its links are open during `lifespan`; `run` sends and
    receives by them. A link that goes down takes the guest's carrier with it, and the machine
    runs on: what the guest sends from then on is dropped and counted.
    """

    def __init__(self, backend: NetBackend, settings: NetSettings) -> None:
        self._backend = backend
        self._settings = settings
        self._mac = settings.mac
        self._counts = Counts()
        self._rx_limiter = RateLimiter(settings.rx_rate_limit)
        self._tx_limiter = RateLimiter(settings.tx_rate_limit)
        self._ports: tuple[Port, ...] = ()
        self._capture: CaptureFile | None = None
        self._activation: Activation | None = None
        self._control: Control | None = None

    # --- what a transport asks -------------------------------------------------------------

    @property
    def device_id(self) -> int:
        """1."""
        return DeviceType.NET

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        """A receive and a transmit queue for each pair, and control (5.1.2 Virtqueues)."""
        return (*(QUEUE_SIZE,) * (2 * self._settings.queues), CONTROL_QUEUE_SIZE)

    @property
    def features(self) -> int:
        """As 5.1.3 names them."""
        return offered(
            self._backend.offloads,
            pairs=self._settings.queues,
            fixed_mac=self._settings.fixed_mac,
        )

    def read_config(self, offset: int, length: int) -> bytes:
        """5.1.4 Device configuration layout; MAC and status are as they are now."""
        if offset < 0:
            return bytes(length)
        mac = self._control.mac if self._control is not None else self._mac
        up = not any(port.down for port in self._ports)
        space = _CONFIG.pack(mac, S_LINK_UP if up else 0, self._settings.queues, self._settings.mtu)
        return space[offset : offset + length].ljust(length, b"\0")

    def counters(self) -> Mapping[str, int]:
        """As `VirtioDevice.counters`; also frames in each direction, and what was dropped."""
        counts = dict(self._counts.as_mapping())
        if self._capture is not None:
            counts["capture_dropped"] = self._capture.dropped
        return counts

    def reset(self) -> None:
        """The driver has forgotten what it had set."""
        self._control = None

    # --- its life --------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Hold the backend's links open.

        Raises:
            ConfigError, BackendError: as `NetBackend.lifespan`; or the capture's file can't be
                written.
        """
        from microvm_devices.net.port import Port

        async with (
            self._backend.lifespan(self._settings.queues) as links,
            self._captured() as capture,
        ):
            if capture is not None:
                links = capture.links(links, vnet_header=self._backend.vnet_header)
            self._ports = tuple(Port(link, self._link_went_down) for link in links)
            try:
                yield
            finally:
                self._ports = ()

    @asynccontextmanager
    async def _captured(self) -> AsyncIterator[CaptureFile | None]:
        if self._settings.capture is None:
            yield None
            return
        from microvm_devices.net.capture import CaptureFile

        self._capture = CaptureFile(self._settings.capture)
        async with self._capture.open():
            yield self._capture

    def _link_went_down(self) -> None:
        self._counts.link_down += 1
        if self._activation is not None:
            self._activation.config_changed()

    # --- a run -----------------------------------------------------------------------------

    async def run(self, activation: Activation) -> None:
        """As `VirtioDevice.run`."""
        self._activation = activation
        try:
            await self._serve(activation)
        finally:
            self._activation = None

    async def _serve(self, activation: Activation) -> None:
        import trio

        from microvm_devices.net.receive import ReceiveQueue

        negotiated = Negotiated.of(activation.features)
        queues = activation.queues
        # 5.1.2: the control queue stands behind the pairs that there may be, or behind the first.
        control_at = 2 * (self._settings.queues if negotiated.multiqueue else 1)
        # Where a VMM keeps control to itself, it gives us the pairs that are in use.
        data = queues[:control_at] if negotiated.control else queues
        pairs = len(data) // 2
        if not pairs:
            raise QueueError("The driver has set up no pair of queues.")
        if self._control is None:
            self._control = Control(
                mac=self._mac,
                mac_settable=not self._settings.fixed_mac,
                max_pairs=pairs,
                multiqueue=negotiated.multiqueue,
            )
        for port in self._ports:
            port.link.accept(negotiated.to_driver)
        receive_queues = [
            ReceiveQueue(active, mergeable=negotiated.mergeable) for active in data[: 2 * pairs : 2]
        ]
        steering = _Steering(pairs if not negotiated.control else self._control.pairs)
        async with trio.open_nursery() as nursery:
            for index in range(pairs):
                nursery.start_soon(self._transmit, data[2 * index + 1], index, negotiated)
            if negotiated.control and len(queues) > control_at:
                nursery.start_soon(self._serve_control, queues[control_at], steering)
            while True:
                async with trio.open_nursery() as flows:
                    for index, port in enumerate(self._ports):
                        queue = receive_queues[index % steering.pairs]
                        flows.start_soon(self._receive, port, queue, negotiated)
                    await steering.wait_changed()
                    flows.cancel_scope.cancel()

    async def _transmit(self, active: ActiveQueue, index: int, negotiated: Negotiated) -> None:
        from microvm_devices.net.transmit import TransmitFlow

        settings = self._settings
        rules = TransmitRules(
            offloads=negotiated.from_driver,
            mtu=settings.mtu,
            only_from=self._mac if settings.fixed_mac else None,
        )
        flow = TransmitFlow(
            active,
            self._ports[index % len(self._ports)],
            vnet_header=self._backend.vnet_header,
            rules=rules,
            limiter=self._tx_limiter,
            counts=self._counts,
        )
        await flow.run()

    async def _receive(self, port: Port, queue: ReceiveQueue, negotiated: Negotiated) -> None:
        from microvm_devices.net.receive import ReceiveFlow

        # A link that leaves segments to us gives frames as long as there are.
        longest = min(ETHERNET_BYTES + VLAN_BYTES + self._settings.mtu, MAX_FRAME_BYTES)
        if negotiated.to_driver & ~Offload.CSUM:
            longest = MAX_FRAME_BYTES
        flow = ReceiveFlow(
            port,
            vnet_header=self._backend.vnet_header,
            queue=queue,
            rules=ReceiveRules(negotiated.to_driver),
            longest=HEADER_BYTES + longest,
            limiter=self._rx_limiter,
            counts=self._counts,
        )
        await flow.run()

    async def _serve_control(self, active: ActiveQueue, steering: _Steering) -> None:
        """5.1.6.5: a command in, one byte out."""
        import trio

        control = self._control
        assert control is not None
        queue = active.queue
        while True:
            await active.doorbell.wait()
            busy = True
            while busy:
                for chain in queue.pop_all():
                    if not chain.writable:
                        raise QueueError("A control command has no room for its answer.")
                    size = min(chain.readable_len, MAX_COMMAND_BYTES + 1)
                    ack = control.command(gather(chain.readable, size) if size else b"")
                    if ack:
                        self._counts.errors += 1
                    chain.writable[0][0] = ack
                    queue.add_used(chain.head, 1)
                    steering.use(control.pairs)
                active.notify()
                await trio.lowlevel.checkpoint()
                busy = queue.enable_notification()


class _Steering:
    """How many pairs are in use, and a way to hear that it has changed."""

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs
        self._changed: trio.Event | None = None

    def use(self, pairs: int) -> None:
        """Use the first `pairs`."""
        if pairs != self.pairs:
            self.pairs = pairs
            if self._changed is not None:
                self._changed.set()

    async def wait_changed(self) -> None:
        """Return at the next change."""
        import trio

        self._changed = trio.Event()
        await self._changed.wait()
