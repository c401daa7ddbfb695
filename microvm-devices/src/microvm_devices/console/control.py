"""The control queue of a console with several ports, as a state machine without any IO.

virtio 1.2, 5.3.6.2 Multiport Device Operation. The driver says that it is ready, is told of each
port, says of each that it is ready, and is then told what the port is::

    driver                                device
    DEVICE_READY 1          ->
                            <-            DEVICE_ADD (for each port)
    PORT_READY id, 1        ->
                            <-            CONSOLE_PORT, RESIZE (the terminal), PORT_NAME (others)
                            <-            PORT_OPEN 1, if somebody on the host has it open
    PORT_OPEN id, 1 or 0    ->            whenever a program of the guest opens or closes it

What the device has to say is kept as what is *owed*, a few bits a port, and never as a list of
messages: a driver that asks without end, and gives no buffers for the answers, makes nothing
grow. Messages that make no sense (a port that there is not, PORT_OPEN before PORT_READY, an event
that is the device's to send) are ignored and counted.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Final

import attrs

from microvm.errors import QueueError

CONTROL: Final = struct.Struct("<IHH")
"""struct virtio_console_control: id, event, value."""
SIZE: Final = struct.Struct("<HH")
"""struct virtio_console_resize: cols, rows. Linux took them for rows and cols for many years, until
6.15 and the stable kernels of that time; the order here is the standard's."""


class Event(enum.IntEnum):
    """VIRTIO_CONSOLE_*."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class Owed(enum.IntFlag):
    """What a port's driver has yet to be told; lower bits go first."""

    ADD = 1
    CONSOLE = 2
    NAME = 4
    RESIZE = 8


_NOTHING: Final = Owed(0)


@attrs.define(kw_only=True)
class PortState:
    """One port, as both sides have it."""

    id: int
    name: str | None
    """None: the terminal."""
    ready: bool = False
    guest_open: bool = False
    host_open: bool = False
    owed: Owed = _NOTHING
    owed_opens: list[bool] = attrs.field(factory=list)
    """Openings and closings by the host that the driver has not heard of: two at most, since an
    opening that was over before it was told is left out."""

    def announce(self, is_open: bool) -> None:
        """Have the driver told of an opening or closing by the host."""
        self.owed_opens.append(is_open)
        if len(self.owed_opens) > 2:
            del self.owed_opens[:2]

    def forget(self) -> None:
        """The driver begins anew."""
        self.ready = self.guest_open = False
        self.owed = _NOTHING
        self.owed_opens.clear()


class Control:
    """All ports, and what the driver has yet to hear of them.

    Args:
        names: Of the ports beside the terminal, which is port 0.
        size: Of the terminal, if the driver is to be told.
    """

    def __init__(self, names: Sequence[str], size: tuple[int, int] | None) -> None:
        self.ports = (
            PortState(id=0, name=None, host_open=True),
            *(PortState(id=number, name=name) for number, name in enumerate(names, start=1)),
        )
        self.size = size
        self.ignored = 0
        """Messages that made no sense."""

    def reset(self) -> None:
        """The driver begins anew; who has a port open on the host still has."""
        for port in self.ports:
            port.forget()

    # --- the driver's messages ---------------------------------------------------------------

    def receive(self, message: bytes) -> PortState | None:
        """Act on a message; returns the port that the guest has opened or closed by it, if any.

        Raises:
            QueueError: it is shorter than a message is.
        """
        if len(message) < CONTROL.size:
            raise QueueError(f"A control message of {len(message)} bytes; it has {CONTROL.size}.")
        number, event, value = CONTROL.unpack_from(message)
        if event == Event.DEVICE_READY:
            # 0 says that the driver can't set the device up: there is nothing to tell it then.
            for port in self.ports if value == 1 else ():
                port.owed |= Owed.ADD
            return None
        if number < len(self.ports):
            port = self.ports[number]
            if event == Event.PORT_READY:
                self._port_ready(port, value == 1)
                return None
            if event == Event.PORT_OPEN and port.ready:
                was_open, port.guest_open = port.guest_open, value == 1
                return port if was_open is not port.guest_open else None
        self.ignored += 1
        return None

    def _port_ready(self, port: PortState, ready: bool) -> None:
        port.ready = ready
        port.owed &= Owed.ADD
        port.owed_opens.clear()
        if not ready:
            return
        if port.name is None:
            port.owed |= Owed.CONSOLE
            if self.size is not None:
                port.owed |= Owed.RESIZE
        else:
            port.owed |= Owed.NAME
        if port.host_open:
            port.announce(True)

    # --- the host's doings -------------------------------------------------------------------

    def host_open(self, number: int, is_open: bool) -> None:
        """The host has opened or closed a port."""
        port = self.ports[number]
        if port.host_open is is_open:
            return
        port.host_open = is_open
        if port.ready:
            port.announce(is_open)

    def resize(self, size: tuple[int, int]) -> None:
        """The terminal has another size."""
        self.size = size
        if self.ports[0].ready:
            self.ports[0].owed |= Owed.RESIZE

    # --- messages for the driver -------------------------------------------------------------

    @property
    def owes(self) -> bool:
        """Whether there is something to tell."""
        return any(port.owed or port.owed_opens for port in self.ports)

    def pay(self) -> bytes | None:
        """The next message for the driver, which counts as told from now on."""
        for port in self.ports:
            if port.owed:
                owed = Owed(port.owed & -port.owed)
                port.owed &= ~owed
                return self._message(port, owed)
            if port.owed_opens:
                return CONTROL.pack(port.id, Event.PORT_OPEN, port.owed_opens.pop(0))
        return None

    def _message(self, port: PortState, owed: Owed) -> bytes:
        match owed:
            case Owed.ADD:
                return CONTROL.pack(port.id, Event.DEVICE_ADD, 0)
            case Owed.CONSOLE:
                return CONTROL.pack(port.id, Event.CONSOLE_PORT, 1)
            case Owed.RESIZE:
                size = SIZE.pack(*(self.size or (0, 0)))
                return CONTROL.pack(port.id, Event.RESIZE, 0) + size
            case _:
                name = (port.name or "").encode("ascii")
                return CONTROL.pack(port.id, Event.PORT_NAME, 1) + name
