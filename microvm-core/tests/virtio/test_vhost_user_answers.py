"""What a session answers and refuses: addresses, offers, acknowledgements, descriptors; no IO."""

import pytest

from microvm.abc import Activation, VirtioDevice
from microvm.errors import BackendError, QueueError
from microvm.virtio.features import NOTIFICATION_DATA, RING_FEATURES, RING_PACKED
from microvm.virtio.vhost_user.message import (
    CONFIG_CHANGED,
    F_PROTOCOL_FEATURES,
    U64,
    ChannelFd,
    ConfigSpace,
    Payload,
    ProtocolFeature,
    Request,
    VringAddresses,
    VringFd,
    VringState,
    encode_payload,
    encode_reply,
)
from microvm.virtio.vhost_user.session import Session, Step

from .vhost_user_front_end import TABLE, USER, Device, FrontEnd, Handle

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
