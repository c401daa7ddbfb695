"""`ConsoleDevice`: virtio-console (virtio 1.2, 5.3 Console Device) as a transport sees it."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from microvm._loop_calls import LoopCalls
from microvm.abc import TerminalDevice, VirtioDevice
from microvm.consoles.hub import ConsoleHub
from microvm.errors import ConfigError, GuestGone, QueueError
from microvm.virtio.chain import ChainReader, ChainWriter
from microvm.virtio.ids import DeviceType
from microvm_devices.console.config import is_size
from microvm_devices.console.control import CONTROL, Control
from microvm_devices.console.queues import next_buffer
from microvm_devices.console.stream_port import StreamPort
from microvm_devices.console.terminal import Terminal

if TYPE_CHECKING:
    import trio

    from microvm.abc import Activation, ActiveQueue, Fact
    from microvm.consoles.client import ConsoleDoor
    from microvm.virtio.chain import DescriptorChain
    from microvm_devices.console.config import ConsoleConfig

VIRTIO_CONSOLE_F_SIZE: Final = 1 << 0
VIRTIO_CONSOLE_F_MULTIPORT: Final = 1 << 1
VIRTIO_CONSOLE_F_EMERG_WRITE: Final = 1 << 2
"""5.3.3 Feature bits."""

QUEUE_SIZE: Final = 64
CONTROL_QUEUES: Final = (2, 3)
"""Receive and transmit, for the device's messages and the driver's (5.3.2 Virtqueues)."""

_CONFIG: Final = struct.Struct("<HHII")
"""struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr (5.3.4)."""
EMERG_WR: Final = 8


def port_queues(number: int) -> tuple[int, int]:
    """Where a port's receiveq and transmitq are: 0 and 1 for port 0, then 4 and 5, 6 and 7 ..."""
    return (0, 1) if number == 0 else (2 * number + 2, 2 * number + 3)


class ConsoleDevice(VirtioDevice, TerminalDevice):
    """A terminal, and named ports beside it.

    Streams are `trio.SocketStream`s over AF_UNIX sockets. Everything but the configuration space
    is for the trio thread.
    """

    def __init__(self, config: ConsoleConfig) -> None:
        self._calls = LoopCalls()
        self.hub = ConsoleHub(self._calls.post)
        """What the terminal has printed of late, and its readers."""
        self._terminal = Terminal(self.hub)
        self._serving = False
        self._control = Control(config.ports, config.size)
        self._ports = {
            port.id: StreamPort(name, self._teller(port.id), self._settle)
            for port in self._control.ports
            if (name := port.name) is not None
        }
        self._by_name = {port.name: port for port in self._ports.values()}
        self._over = False
        self._owing: trio.Event | None = None
        self._activation: Activation | None = None
        self._control_transmit: ActiveQueue | None = None
        self._size_untold = False
        self._requests = 0

    @cached_property
    def _door(self) -> ConsoleDoor:
        # Made when first needed: it imports trio.
        from microvm.consoles.client import ConsoleDoor

        return ConsoleDoor(self.hub, self._terminal.send)

    def _teller(self, number: int) -> Callable[[bool], None]:
        def tell(is_open: bool) -> None:
            self._control.host_open(number, is_open)
            self._wake_control()

        return tell

    # --- VirtioDevice --------------------------------------------------------------------

    @property
    def device_id(self) -> int:
        """3."""
        return DeviceType.CONSOLE

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        """Two for each port and, where there are several, two for control (5.3.2)."""
        count = 2 if not self._ports else 2 * len(self._control.ports) + len(CONTROL_QUEUES)
        return (QUEUE_SIZE,) * count

    @property
    def features(self) -> int:
        """SIZE if it is known, MULTIPORT if there are named ports, and EMERG_WRITE."""
        return (
            VIRTIO_CONSOLE_F_EMERG_WRITE
            | (VIRTIO_CONSOLE_F_SIZE if self._control.size is not None else 0)
            | (VIRTIO_CONSOLE_F_MULTIPORT if self._ports else 0)
        )

    @property
    def always_writable(self) -> range:
        """emerg_wr, which works without a driver (5.3.4)."""
        return range(EMERG_WR, EMERG_WR + 1)

    def read_config(self, offset: int, length: int) -> bytes:
        """The terminal's size, and how many ports there are at most."""
        cols, rows = self._control.size or (0, 0)
        space = _CONFIG.pack(cols, rows, len(self._control.ports), 0)
        return (
            space[offset : offset + length].ljust(length, b"\0") if offset >= 0 else bytes(length)
        )

    def write_config(self, offset: int, data: bytes) -> None:
        """A character through emerg_wr, the only field that a driver writes. From any thread."""
        if offset <= EMERG_WR < offset + len(data):
            self.hub.feed(data[EMERG_WR - offset : EMERG_WR - offset + 1])

    def counters(self) -> Mapping[str, int]:
        """As `VirtioDevice.counters`; of all ports together.

        ``requests`` are buffers used. ``dropped_bytes`` are what the terminal's readers were too
        slow for, what was sent to streams whose other end had gone, and what closed streams had
        sent when the port was opened anew. ``errors`` are control messages that made no sense.
        """
        terminal, ports = self._terminal, tuple(self._ports.values())
        return {
            "requests": self._requests + terminal.requests + sum(port.requests for port in ports),
            "sent_bytes": terminal.sent_bytes + sum(port.sent_bytes for port in ports),
            "received_bytes": terminal.received_bytes + sum(port.received_bytes for port in ports),
            "dropped_bytes": self.hub.counters()["dropped_bytes"]
            + sum(port.dropped_bytes for port in ports),
            "errors": self._control.ignored,
        }

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Serve readers of the terminal; at its end every stream ends."""
        import trio

        self._calls.attach(trio.lowlevel.current_trio_token())
        try:
            async with trio.open_nursery() as nursery:
                self._door.serve_in(nursery)
                self._serving = True
                try:
                    yield
                finally:
                    self._serving = False
                    self._over = True
                    for port in self._ports.values():
                        port.close()
                    self._door.finish()
        finally:
            self._calls.close()

    def reset(self) -> None:
        """The guest has forgotten its ports."""
        self._control.reset()
        self._terminal.reset()
        for port in self._ports.values():
            port.reset()

    async def run(self, activation: Activation) -> None:
        """As `VirtioDevice.run`."""
        import trio

        self._activation = activation
        if self._size_untold:
            self._tell_size()
        queues = activation.queues
        several = bool(activation.features & VIRTIO_CONSOLE_F_MULTIPORT)
        # With one port the driver never says that it is ready for it.
        self._terminal.hold(several and not self._control.ports[0].guest_open)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)  # also if there is nothing to serve
                if len(queues) > 1:
                    nursery.start_soon(self._terminal.serve_input, queues[0])
                    nursery.start_soon(self._terminal.serve_output, queues[1])
                if several and len(queues) > max(CONTROL_QUEUES):
                    nursery.start_soon(self._serve_control_receive, queues[CONTROL_QUEUES[0]])
                    self._control_transmit = queues[CONTROL_QUEUES[1]]
                    nursery.start_soon(self._serve_control_transmit, self._control_transmit)
                for number, port in self._ports.items() if several else ():
                    receive, transmit = port_queues(number)
                    if transmit < len(queues):
                        nursery.start_soon(port.serve_input, queues[receive])
                        nursery.start_soon(port.serve_output, queues[transmit])
        finally:
            self._activation = self._control_transmit = None

    # --- the terminal --------------------------------------------------------------------

    async def open_console(self) -> trio.SocketStream:
        """A stream to the terminal; any number of them.

        What is read begins with the last that was printed; a reader that is too slow misses
        bytes, which are counted. What is written is typed.

        Raises:
            GuestGone: the machine has ended.
        """
        import trio

        await trio.lowlevel.checkpoint()
        if not self._serving:
            raise GuestGone("The console's machine does not run.")
        return self._door.open()

    def follow(self, output: Callable[[bytes], None]) -> None:
        """As `TerminalDevice.follow`."""
        self.hub.follow(output)

    async def send(self, data: bytes) -> None:
        """Have bytes typed at the terminal; waits while the guest takes none."""
        await self._terminal.send(data)

    def resize(self, cols: int, rows: int) -> None:
        """Tell the guest another size of the terminal.

        Raises:
            ConfigError: it is no size, or the device was made without one.
        """
        if not is_size((cols, rows)):
            raise ConfigError(f"A terminal of {cols} columns and {rows} rows can't be.")
        if self._control.size is None:
            raise ConfigError(
                "This console was made without a size, so that its guest does not ask for one.",
                remedy="Give the console device a size, such as (80, 25).",
            )
        self._control.resize((cols, rows))
        self._tell_size()

    def _tell_size(self) -> None:
        """By a message where there is a control queue, else by the configuration space."""
        activation = self._activation
        self._size_untold = activation is None
        if activation is None:
            return
        if activation.features & VIRTIO_CONSOLE_F_MULTIPORT:
            self._wake_control()
        elif activation.features & VIRTIO_CONSOLE_F_SIZE:
            activation.config_changed()

    # --- named ports ---------------------------------------------------------------------

    def open_port(self, name: str) -> trio.SocketStream:
        """A stream to whatever opens the port in the guest, now or later.

        Either end's closing reads as end-of-file on the other. A port has one stream at a time.

        Raises:
            ConfigError: there is no such port, or it is open; or the guest has yet to take what
                an earlier stream has sent.
            GuestGone: the machine has ended.
        """
        port = self._by_name.get(name)
        if port is None:
            known = ", ".join(self._by_name) or "none: give the console device a list `ports`"
            raise ConfigError(f"This console has no port {name!r}.", remedy=f"It has {known}.")
        if self._over:
            raise GuestGone("The console's machine has ended.")
        return port.open()

    async def open_stream(self, name: str) -> trio.SocketStream:
        """As `VirtioDevice.open_stream`: a named port."""
        return self.open_port(name)

    async def command(self, what: str, arguments: Mapping[str, Any]) -> Mapping[str, Fact]:
        """As `VirtioDevice.command`: ``resize``, to ``cols`` and ``rows``."""
        if what != "resize":
            return await super().command(what, arguments)
        if set(arguments) != {"cols", "rows"}:
            raise ConfigError("A console is resized to cols and rows.")
        self.resize(arguments["cols"], arguments["rows"])
        return {}

    # --- control -------------------------------------------------------------------------

    async def _serve_control_transmit(self, active: ActiveQueue) -> None:
        """What the driver says."""
        import trio

        while True:
            active.queue.disable_notification()
            self._take_control(active)
            active.notify()
            await trio.lowlevel.checkpoint()
            if not active.queue.enable_notification():
                await active.doorbell.wait()

    def _settle(self) -> None:
        """Hear what the driver has said by now, for a port that can't wait for its turn.

        The task whose queue it is may be asleep, or about to be: nothing of this is left to it.
        """
        if self._control_transmit is not None:
            self._take_control(self._control_transmit)
            self._control_transmit.notify()

    def _take_control(self, active: ActiveQueue) -> None:
        """Act on what the driver has said by now: no more than its queue holds."""
        for chain in active.queue.pop_all():
            reader = ChainReader(chain)
            changed = self._control.receive(reader.read(min(reader.remaining, CONTROL.size)))
            active.queue.add_used(chain.head, 0)
            self._requests += 1
            if changed is not None and changed.id in self._ports:
                self._ports[changed.id].guest_opened(changed.guest_open)
            elif changed is not None:
                self._terminal.hold(not changed.guest_open)
            self._wake_control()

    async def _serve_control_receive(self, active: ActiveQueue) -> None:
        """What the driver is told."""
        import trio

        active.queue.disable_notification()
        chain: DescriptorChain | None = None
        while True:
            while not self._control.owes:
                self._owing = trio.Event()
                await self._owing.wait()
            if chain is None:
                chain = await next_buffer(active)
            message = self._control.pay()
            if message is None:
                continue  # the driver wants to hear of it no more
            if len(message) > chain.writable_len:
                raise QueueError(
                    f"A control message of {len(message)} bytes, and {chain.writable_len} for it."
                )
            writer = ChainWriter(chain)
            writer.write(message)
            active.queue.add_used(chain.head, writer.written)
            active.notify()
            chain = None

    def _wake_control(self) -> None:
        if self._owing is not None:
            self._owing.set()
