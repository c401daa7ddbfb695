"""When a device runs and when it does not: the session's rule, without any IO."""

from collections.abc import Iterable

import attrs
import pytest

from microvm.abc import Activation, VirtioDevice
from microvm.errors import BackendError, QueueError
from microvm.virtio.features import NOTIFICATION_DATA, RING_FEATURES, RING_PACKED, RING_RESET
from microvm.virtio.vhost_user.message import (
    CONFIG_CHANGED,
    F_PROTOCOL_FEATURES,
    U64,
    ChannelFd,
    ConfigSpace,
    Empty,
    MemoryRegion,
    MemoryTable,
    Payload,
    ProtocolFeature,
    Request,
    VringAddresses,
    VringFd,
    VringState,
    encode_payload,
    encode_reply,
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


@pytest.fixture
def vmm() -> FrontEnd:
    front_end = FrontEnd()
    front_end.introduce()
    return front_end


# --- the rule of activation --------------------------------------------------------------------


def test_the_run_comes_with_the_last_ring_enabled_and_not_before(vmm: FrontEnd) -> None:
    take = vmm.session.take_plan
    assert take() is None
    vmm.features()
    vmm.memory()
    kicks = []
    for index in range(2):
        kicks.append(vmm.ring(index))
        assert take() is None
    vmm.enable(0)
    assert take() is None
    vmm.enable(1)
    plan = take()
    assert plan is not None
    assert [ring.ring.index for ring in plan.rings] == [0, 1]
    assert [ring.kick for ring in plan.rings] == kicks
    assert plan.features == RING_FEATURES
    assert not plan.resumed
    assert take() is None


def test_a_front_end_that_enables_nothing_names_its_rings_by_their_calls() -> None:
    """QEMU up to 7.1."""
    vmm = FrontEnd()
    vmm.introduce(rings=2)
    vmm.features(own=0)
    vmm.memory()
    vmm.ring(0)
    assert vmm.session.take_plan() is None
    vmm.ring(1)
    plan = vmm.session.take_plan()
    assert plan is not None
    assert len(plan.rings) == 2


def test_a_ring_with_a_gap_before_it_waits(vmm: FrontEnd) -> None:
    vmm.features()
    vmm.memory()
    vmm.ring(1)
    vmm.enable(0)
    vmm.enable(1)
    assert vmm.session.take_plan() is None
    vmm.ring(0)
    assert vmm.session.take_plan() is not None


def test_features_and_memory_are_needed_whichever_comes_last(vmm: FrontEnd) -> None:
    vmm.ring(0)
    vmm.enable(0)
    assert vmm.session.take_plan() is None
    vmm.memory()
    assert vmm.session.take_plan() is None
    vmm.features()
    assert vmm.session.take_plan() is not None


def test_what_the_driver_declined_is_not_in_the_plan(vmm: FrontEnd) -> None:
    vmm.start()
    vmm.send(Request.SET_FEATURES, U64(value=1 << 32 | F_PROTOCOL_FEATURES | RING_RESET))
    plan = vmm.session.take_plan()
    assert plan is not None
    assert plan.features == 1 << 32


def test_a_run_that_ended_by_itself_is_not_started_again(vmm: FrontEnd) -> None:
    vmm.start()
    assert vmm.session.take_plan() is not None
    vmm.call(0)
    vmm.send(Request.GET_CONFIG, ConfigSpace(offset=0, flags=0, data=bytes(1)))
    vmm.enable(0)
    vmm.features()
    assert vmm.session.take_plan() is None


def test_stop_and_start_is_a_resumption_iff_the_bases_go_on(vmm: FrontEnd) -> None:
    vmm.start()
    vmm.session.take_plan()
    for base, resumed in ((7, True), (0, False)):
        for index in range(2):
            vmm.enable(index, False)
        vmm.session.stopped({0: 5, 1: 7})
        for index, left in ((0, 5), (1, 7)):
            step = vmm.send(Request.GET_VRING_BASE, VringState(index=index, num=0))
            state = encode_payload(VringState(index=index, num=left))
            assert step.reply == encode_reply(Request.GET_VRING_BASE, state)
        assert vmm.session.take_plan() is None
        vmm.start(base)
        plan = vmm.session.take_plan()
        assert plan is not None
        assert plan.resumed is resumed
        assert [ring.base for ring in plan.rings] == [base, base]


def test_rings_enabled_all_along_wait_for_their_kicks(vmm: FrontEnd) -> None:
    """A front end that stops with GET_VRING_BASE alone."""
    vmm.start()
    vmm.session.take_plan()
    for index in range(2):
        vmm.send(Request.GET_VRING_BASE, VringState(index=index, num=0))
    assert vmm.session.take_plan() is None
    vmm.ring(0)
    assert vmm.session.take_plan() is None
    vmm.ring(1)
    assert vmm.session.take_plan() is not None


def test_rings_that_were_enabled_before_any_was_complete_run_together(vmm: FrontEnd) -> None:
    """As QEMU does for a network card."""
    for index in range(2):
        vmm.enable(index)
    vmm.features()
    vmm.memory()
    vmm.ring(0)
    assert vmm.session.take_plan() is None
    vmm.ring(1)
    plan = vmm.session.take_plan()
    assert plan is not None
    assert len(plan.rings) == 2


def test_new_memory_under_a_running_device_gives_a_new_run_where_the_old_one_stood(
    vmm: FrontEnd,
) -> None:
    vmm.start()
    vmm.session.take_plan()
    assert vmm.stops(Request.SET_MEM_TABLE, TABLE)
    vmm.session.stopped({0: 3, 1: 4})
    step = vmm.memory()
    assert step.map_memory == TABLE.regions
    plan = vmm.session.take_plan()
    assert plan is not None
    assert plan.resumed
    assert [ring.base for ring in plan.rings] == [3, 4]


def test_what_would_change_a_run_under_its_hands_ends_it_first(vmm: FrontEnd) -> None:
    vmm.start()
    state = VringState(index=0, num=0)
    fd = VringFd(index=0, has_fd=True)
    ends: dict[Request, Payload] = {
        Request.SET_FEATURES: U64(value=1 << 32 | F_PROTOCOL_FEATURES),
        Request.RESET_OWNER: Empty(),
        Request.SET_MEM_TABLE: TABLE,
        Request.SET_VRING_NUM: state,
        Request.SET_VRING_BASE: state,
        Request.GET_VRING_BASE: state,
        Request.SET_VRING_KICK: fd,
        Request.SET_VRING_ADDR: VringAddresses(index=0, flags=0, desc=0, used=0, avail=0, log=0),
        Request.SET_VRING_ENABLE: state,
    }
    goes_on: dict[Request, Payload] = {
        Request.GET_FEATURES: Empty(),
        Request.SET_FEATURES: U64(value=RING_FEATURES | F_PROTOCOL_FEATURES),
        Request.SET_OWNER: Empty(),
        Request.SET_VRING_CALL: fd,
        Request.SET_VRING_ERR: fd,
        Request.GET_PROTOCOL_FEATURES: Empty(),
        Request.SET_PROTOCOL_FEATURES: U64(value=9),
        Request.GET_QUEUE_NUM: Empty(),
        Request.SET_VRING_ENABLE: VringState(index=0, num=1),
        Request.SET_BACKEND_REQ_FD: ChannelFd(),
        Request.GET_CONFIG: ConfigSpace(offset=0, flags=0, data=b"x"),
        Request.SET_CONFIG: ConfigSpace(offset=0, flags=0, data=b"x"),
    }
    assert {*ends, *goes_on} == set(Request)
    assert [request for request, payload in ends.items() if not vmm.stops(request, payload)] == []
    assert [request for request, payload in goes_on.items() if vmm.stops(request, payload)] == []


def test_reset_owner_disables_every_ring(vmm: FrontEnd) -> None:
    vmm.start()
    vmm.send(Request.RESET_OWNER)
    assert vmm.session.take_plan() is None
    vmm.start()
    assert vmm.session.take_plan() is not None


# --- a network card's pairs ----------------------------------------------------------------------


class Card(Device):
    """Two pairs and control, which QEMU keeps."""

    device_id = 1
    queue_max_sizes = (64, 64, 64, 64, 64)


@pytest.fixture
def card() -> FrontEnd:
    front_end = FrontEnd(Session(Card()))
    front_end.introduce(rings=4)
    front_end.features()
    front_end.memory()
    return front_end


def rings_of(vmm: FrontEnd) -> list[int] | None:
    plan = vmm.session.take_plan()
    return None if plan is None else [ring.ring.index for ring in plan.rings]


def test_a_network_card_runs_with_the_pairs_that_are_enabled(card: FrontEnd) -> None:
    """A driver uses as many of the pairs it has set up as it likes (virtio 1.2, 5.1.6.5.6)."""
    for index in range(4):
        card.enable(index)
    for index in range(4):
        assert rings_of(card) is None
        card.ring(index)
    assert rings_of(card) == [0, 1, 2, 3]
    for index in (2, 3):
        assert card.stops(Request.SET_VRING_ENABLE, VringState(index=index, num=0))
        card.enable(index, False)
        assert rings_of(card) == [0, 1]
    card.enable(2)
    assert rings_of(card) == [0, 1]
    card.enable(3)
    assert rings_of(card) == [0, 1, 2, 3]


def test_a_card_whose_driver_begins_with_one_pair_of_two_runs_with_it(card: FrontEnd) -> None:
    for index in range(2):
        card.enable(index)
    for index in range(4):
        card.ring(index)
    assert rings_of(card) == [0, 1]


def test_a_card_runs_anew_when_its_last_pair_in_use_is_there_again(card: FrontEnd) -> None:
    """A reset with one of two pairs in use, as QEMU stops rings: by GET_VRING_BASE alone."""
    for index in range(2):
        card.enable(index)
    for index in range(4):
        card.ring(index)
    assert rings_of(card) == [0, 1]
    for index in range(4):
        card.send(Request.GET_VRING_BASE, VringState(index=index, num=0))
        assert rings_of(card) is None
    card.ring(0)
    assert rings_of(card) is None
    card.ring(1)
    assert rings_of(card) == [0, 1]


def test_a_card_without_a_whole_pair_does_not_run(card: FrontEnd) -> None:
    for index in range(4):
        card.ring(index)
        assert rings_of(card) is None
    card.enable(0)
    assert rings_of(card) is None
    card.enable(2)
    card.enable(3)
    assert rings_of(card) is None
    card.enable(1)
    assert rings_of(card) == [0, 1, 2, 3]


# --- addresses ---------------------------------------------------------------------------------


def test_a_rings_user_addresses_become_guest_addresses(vmm: FrontEnd) -> None:
    vmm.start()
    high = USER + (1 << 30)
    addresses = VringAddresses(
        index=1, flags=0, desc=high + 0x2000, avail=USER + 0xFF00, used=high + 0xF000, log=0
    )
    vmm.send(Request.SET_VRING_ADDR, addresses)
    plan = vmm.session.take_plan()
    assert plan is not None
    layout = plan.layout(plan.rings[1])
    assert (layout.desc, layout.avail, layout.used) == (0x10_2000, 0xFF00, 0x10_F000)
    assert plan.layout(plan.rings[0]).size == 8


@pytest.mark.parametrize(
    "desc", [0, USER - 1, USER + 0x10000, USER + (1 << 30) - 1, USER + (1 << 30) + 0x10000]
)
def test_a_ring_outside_the_table_is_the_drivers_fault(vmm: FrontEnd, desc: int) -> None:
    vmm.start()
    addresses = VringAddresses(index=0, flags=0, desc=desc, avail=USER, used=USER, log=0)
    vmm.send(Request.SET_VRING_ADDR, addresses)
    plan = vmm.session.take_plan()
    assert plan is not None
    with pytest.raises(QueueError, match="not in guest memory"):
        plan.layout(plan.rings[0])


# --- answers and refusals ----------------------------------------------------------------------


def answer(step: Step) -> int:
    assert step.reply is not None
    return int.from_bytes(step.reply[12:], "little")


def test_what_is_offered() -> None:
    vmm = FrontEnd()
    offered = RING_FEATURES | F_PROTOCOL_FEATURES | Device.features
    assert answer(vmm.send(Request.GET_FEATURES)) == offered
    protocol = sum(ProtocolFeature)
    assert answer(vmm.send(Request.GET_PROTOCOL_FEATURES)) == protocol


def test_a_device_without_a_configuration_space_offers_none() -> None:
    class Plain(VirtioDevice):
        device_id = 4
        queue_max_sizes = (64,)

        async def run(self, activation: Activation) -> None:
            """Not called here."""

    vmm = FrontEnd(Session(Plain()))
    protocol = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
    assert answer(vmm.send(Request.GET_PROTOCOL_FEATURES)) == protocol


def test_the_number_of_queues_and_the_configuration_are_the_devices(vmm: FrontEnd) -> None:
    assert answer(vmm.send(Request.GET_QUEUE_NUM)) == 3
    step = vmm.send(Request.GET_CONFIG, ConfigSpace(offset=4, flags=0, data=bytes(4)))
    space = ConfigSpace(offset=4, flags=0, data=bytes([4, 5, 6, 7]))
    assert step.reply == encode_reply(Request.GET_CONFIG, encode_payload(space))
    vmm.send(Request.SET_CONFIG, ConfigSpace(offset=2, flags=0, data=b"ab"))
    device = vmm.session.device
    assert isinstance(device, Device)
    assert device.written == [(2, b"ab")]


def test_an_acknowledgement_comes_iff_asked_for_and_negotiated() -> None:
    vmm = FrontEnd()
    assert vmm.send(Request.SET_OWNER, need_reply=True).reply is None
    vmm.send(Request.SET_PROTOCOL_FEATURES, U64(value=ProtocolFeature.REPLY_ACK))
    assert vmm.send(Request.SET_OWNER).reply is None
    acknowledged = encode_reply(Request.SET_OWNER, bytes(8))
    assert vmm.send(Request.SET_OWNER, need_reply=True).reply == acknowledged
    # A request with a reply of its own gets that one only.
    assert len(vmm.send(Request.GET_FEATURES, need_reply=True).reply or b"") == 12 + 8


@pytest.mark.parametrize(
    ("request_", "payload", "reason"),
    [
        (Request.SET_FEATURES, U64(value=1 << 3), "not offered"),
        (Request.SET_FEATURES, U64(value=RING_PACKED), "not offered"),
        (Request.SET_FEATURES, U64(value=NOTIFICATION_DATA), "not offered"),
        (Request.SET_FEATURES, U64(value=1 << 26), "not offered"),
        (Request.SET_PROTOCOL_FEATURES, U64(value=1 << 1), "not offered"),
        (Request.SET_PROTOCOL_FEATURES, U64(value=1 << 63), "not offered"),
        (Request.SET_VRING_NUM, VringState(index=3, num=8), "ring 3 of 3"),
        (Request.SET_VRING_BASE, VringState(index=3, num=8), "ring 3 of 3"),
        (Request.SET_VRING_BASE, VringState(index=0, num=0x1_0000), "index 65536"),
        (Request.GET_VRING_BASE, VringState(index=0xFFFF_FFFF, num=0), "ring 4294967295"),
        (Request.SET_VRING_ENABLE, VringState(index=3, num=1), "ring 3 of 3"),
        (Request.SET_VRING_ENABLE, VringState(index=0, num=2), "neither 0 nor 1"),
        (Request.SET_VRING_KICK, VringFd(index=0, has_fd=False), "polled"),
        (Request.SET_VRING_CALL, VringFd(index=255, has_fd=False), "ring 255"),
        (Request.SET_VRING_ERR, VringFd(index=0, has_fd=True), "0 descriptors, not 1"),
        (Request.SET_MEM_TABLE, TABLE, "0 descriptors, not 2"),
        (Request.SET_BACKEND_REQ_FD, ChannelFd(), "0 descriptors, not 1"),
    ],
)
def test_what_the_protocol_does_not_allow_is_refused(
    vmm: FrontEnd, request_: Request, payload: Payload, reason: str
) -> None:
    with pytest.raises(BackendError, match=reason):
        vmm.send(request_, payload)


def test_descriptors_that_nobody_asked_for_are_refused(vmm: FrontEnd) -> None:
    with pytest.raises(BackendError, match="1 descriptors, not 0"):
        vmm.send(Request.SET_OWNER, fds=[Handle()])
    with pytest.raises(BackendError, match="1 descriptors, not 0"):
        vmm.send(Request.SET_VRING_CALL, VringFd(index=0, has_fd=False), [Handle()])


@pytest.mark.parametrize("request_", [Request.GET_QUEUE_NUM, Request.GET_CONFIG])
def test_a_request_whose_feature_was_not_negotiated_is_refused(request_: Request) -> None:
    payload = ConfigSpace(offset=0, flags=0, data=b"x")
    with pytest.raises(BackendError, match="not negotiated"):
        FrontEnd().send(request_, payload)


def test_a_change_of_the_configuration_is_told_on_the_channel_if_there_is_one(
    vmm: FrontEnd,
) -> None:
    vmm.session.config_changed()
    first, second = Handle(), Handle()
    vmm.send(Request.SET_BACKEND_REQ_FD, ChannelFd(), [first])
    vmm.session.config_changed()
    assert first.sent == [CONFIG_CHANGED]
    vmm.send(Request.SET_BACKEND_REQ_FD, ChannelFd(), [second])
    assert not first.open
    vmm.session.config_changed()
    assert (first.sent, second.sent) == ([CONFIG_CHANGED], [CONFIG_CHANGED])
    vmm.session.close()
    assert not second.open
    vmm.session.config_changed()
    assert second.sent == [CONFIG_CHANGED]


# --- descriptors -------------------------------------------------------------------------------


def test_a_replaced_descriptor_is_closed_and_a_new_one_prepared(vmm: FrontEnd) -> None:
    first = vmm.call(0)
    second = vmm.call(0)
    assert (first.open, second.open, second.prepared) == (False, True, True)
    vmm.send(Request.SET_VRING_CALL, VringFd(index=0, has_fd=False))
    assert not second.open
    kick = vmm.ring(0)
    vmm.send(Request.GET_VRING_BASE, VringState(index=0, num=0))
    assert not kick.open


def test_close_closes_them_all() -> None:
    vmm = FrontEnd()
    handles = [vmm.call(0), vmm.call(1), vmm.ring(0), vmm.ring(1)]
    vmm.session.close()
    assert not any(handle.open for handle in handles)
