"""When a device runs and when it does not: the session's rule, without any IO."""

import pytest

from microvm.virtio.features import RING_FEATURES, RING_RESET
from microvm.virtio.vhost_user.message import (
    F_PROTOCOL_FEATURES,
    U64,
    ChannelFd,
    ConfigSpace,
    Empty,
    Payload,
    Request,
    VringAddresses,
    VringFd,
    VringState,
    encode_payload,
    encode_reply,
)
from microvm.virtio.vhost_user.session import Session

from .vhost_user_front_end import TABLE, Device, FrontEnd

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


@pytest.mark.parametrize(
    ("left", "base", "paused", "resumed"),
    [
        (0, 0, True, True),  # after 65536 requests, or before the first
        (0, 0, False, False),
        (7, 7, True, True),
        (7, 0, True, False),  # the driver reset the device just before the pause came
    ],
)
def test_after_a_pause_that_was_announced_who_begins_where_it_stood_goes_on(
    vmm: FrontEnd, left: int, base: int, paused: bool, resumed: bool
) -> None:
    vmm.start()
    vmm.session.take_plan()
    for index in range(2):
        vmm.enable(index, False)
    vmm.session.stopped({0: left, 1: left}, paused=paused)
    vmm.start(base)
    plan = vmm.session.take_plan()
    assert plan is not None
    assert plan.resumed is resumed


def test_a_pause_is_for_one_run_and_the_next_is_judged_by_its_own_end(vmm: FrontEnd) -> None:
    for paused, resumed in ((True, False), (False, True), (False, False)):
        vmm.start()
        plan = vmm.session.take_plan()
        assert plan is not None
        assert plan.resumed is resumed
        for index in range(2):
            vmm.enable(index, False)
        vmm.session.stopped({0: 0, 1: 0}, paused=paused)


def test_a_run_that_never_stood_anywhere_is_no_reason_to_go_on(vmm: FrontEnd) -> None:
    """Its rings could not be opened: there is nothing to go on with."""
    vmm.start()
    vmm.session.take_plan()
    for index in range(2):
        vmm.enable(index, False)
    vmm.session.stopped({}, paused=True)
    vmm.start()
    plan = vmm.session.take_plan()
    assert plan is not None
    assert not plan.resumed


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
