"""A front end that says to a session what QEMU would, without any IO."""

from collections.abc import Iterable

import attrs

from microvm.abc import Activation, VirtioDevice
from microvm.virtio.features import RING_FEATURES
from microvm.virtio.vhost_user.message import (
    F_PROTOCOL_FEATURES,
    U64,
    Empty,
    MemoryRegion,
    MemoryTable,
    Payload,
    ProtocolFeature,
    Request,
    VringAddresses,
    VringFd,
    VringState,
)
from microvm.virtio.vhost_user.session import Message, Session, Step

USER = 0x7F00_0000_0000
TABLE = MemoryTable(
    regions=(
        MemoryRegion(guest_address=0, size=0x10000, user_address=USER, mmap_offset=0),
        MemoryRegion(
            guest_address=0x10_0000,
            size=0x10000,
            user_address=USER + (1 << 30),
            mmap_offset=0x10000,
        ),
    )
)


class Handle:
    """A descriptor that counts."""

    def __init__(self) -> None:
        self.open = True
        self.prepared = False
        self.sent: list[bytes] = []

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.open = False

    def signal(self) -> None:
        """Nobody listens."""

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def prepare_signal(self) -> None:
        self.prepared = True


class Device(VirtioDevice):
    device_id = 19
    queue_max_sizes = (64, 64, 64)
    features = 1 << 1

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []

    def read_config(self, offset: int, length: int) -> bytes:
        return bytes(range(offset, offset + length))

    def write_config(self, offset: int, data: bytes) -> None:
        self.written.append((offset, data))

    async def run(self, activation: Activation) -> None:
        """Not called here."""


@attrs.define
class FrontEnd:
    """Sends to a session what a front end would."""

    session: Session = attrs.field(factory=lambda: Session(Device()))

    def send(
        self,
        request: Request,
        payload: Payload | None = None,
        fds: Iterable[Handle] = (),
        *,
        need_reply: bool = False,
    ) -> Step:
        return self.session.receive(
            Message(
                request=request,
                payload=payload or Empty(),
                fds=tuple(fds),
                need_reply=need_reply,
            )
        )

    def stops(self, request: Request, payload: Payload | None = None) -> bool:
        return self.session.stops(Message(request=request, payload=payload or Empty()))

    def introduce(self, rings: int = 2) -> None:
        protocol = sum(ProtocolFeature)
        self.send(Request.SET_PROTOCOL_FEATURES, U64(value=protocol))
        self.send(Request.SET_OWNER)
        for index in range(rings):
            self.call(index)
            self.send(Request.SET_VRING_ERR, VringFd(index=index, has_fd=True), [Handle()])

    def call(self, index: int) -> Handle:
        handle = Handle()
        self.send(Request.SET_VRING_CALL, VringFd(index=index, has_fd=True), [handle])
        return handle

    def features(self, own: int = F_PROTOCOL_FEATURES) -> None:
        self.send(Request.SET_FEATURES, U64(value=RING_FEATURES | own))

    def memory(self) -> Step:
        return self.send(Request.SET_MEM_TABLE, TABLE, [Handle(), Handle()])

    def ring(self, index: int, base: int = 0) -> Handle:
        where = USER + 0x1000 * index
        kick = Handle()
        self.send(Request.SET_VRING_NUM, VringState(index=index, num=8))
        self.send(Request.SET_VRING_BASE, VringState(index=index, num=base))
        self.send(
            Request.SET_VRING_ADDR,
            VringAddresses(
                index=index, flags=0, desc=where, avail=where + 128, used=where + 256, log=0
            ),
        )
        self.send(Request.SET_VRING_KICK, VringFd(index=index, has_fd=True), [kick])
        return kick

    def enable(self, index: int, on: bool = True) -> None:
        self.send(Request.SET_VRING_ENABLE, VringState(index=index, num=int(on)))

    def start(self, base: int = 0) -> None:
        """QEMU 7.2 at DRIVER_OK, two rings of the device's three."""
        self.features()
        self.memory()
        for index in range(2):
            self.ring(index, base)
        for index in range(2):
            self.enable(index)
