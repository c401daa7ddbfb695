"""Which of a tunnel's states its user is told, and when."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.openvpn.states import ENDED, VpnState
from microvm_guest.openvpn.status import VpnStatus
from microvm_guest.openvpn.telling import BURST, MAX_WAITING, PER_S, Telling

S = VpnState


class Told:
    """What one run's user has heard."""

    def __init__(self) -> None:
        self.heard: list[VpnStatus] = []
        self.asked_back = 0
        self.telling = Telling(self.heard.append, self.come_back)

    def come_back(self) -> None:
        self.asked_back += 1

    def becomes(self, *states: VpnState, now: float = 0.0) -> None:
        for state in states:
            self.telling.put(VpnStatus(state=state), now)

    @property
    def states(self) -> list[VpnState]:
        return [status.state for status in self.heard]

    def flood(self) -> None:
        """More than there is budget for."""
        for number in range(2 * int(BURST)):
            self.telling.put(VpnStatus(state=S.CONNECTING, detail=str(number)), 0.0)


def test_states_are_told_at_once_and_in_order() -> None:
    told = Told()
    told.becomes(S.CONNECTING, S.AUTHENTICATING, S.CONNECTED)
    assert told.states == [S.CONNECTING, S.AUTHENTICATING, S.CONNECTED]


def test_what_has_not_changed_is_not_told_again() -> None:
    told = Told()
    status = VpnStatus(state=S.CONNECTED)
    for count in range(3):
        told.telling.put(attrs.evolve(status, received_bytes=count, sent_bytes=count), 0.0)
    assert told.heard == [status]


def test_while_it_is_held_nothing_is_told_and_then_all_of_it() -> None:
    told = Told()
    told.becomes(S.CONNECTED)
    told.telling.hold()
    told.telling.hold()
    told.becomes(S.RECONNECTING, S.AUTHENTICATING)
    told.telling.release(0.0)
    assert told.states == [S.CONNECTED]
    told.telling.release(0.0)
    assert told.states == [S.CONNECTED, S.RECONNECTING, S.AUTHENTICATING]


def test_of_too_many_that_are_held_the_last_are_told() -> None:
    told = Told()
    told.telling.hold()
    for number in range(MAX_WAITING + 5):
        told.telling.put(VpnStatus(state=S.CONNECTING, detail=str(number)), 0.0)
    told.telling.release(0.0)
    assert [status.detail for status in told.heard] == [
        str(number) for number in range(5, MAX_WAITING + 5)
    ]


def test_of_a_flood_the_last_is_told_as_soon_as_it_may_be() -> None:
    told = Told()
    told.flood()
    assert len(told.heard) == BURST
    assert (told.telling.is_late, told.asked_back) == (True, 1)
    told.telling.go_on(0.5 / PER_S)
    assert len(told.heard) == BURST
    told.becomes(S.AUTHENTICATING, now=1 / PER_S)
    assert len(told.heard) == BURST + 1
    assert told.states[-1] is S.AUTHENTICATING
    assert not told.telling.is_late


@pytest.mark.parametrize("end", sorted(ENDED))
def test_an_end_is_told_at_once_in_the_midst_of_a_flood(end: VpnState) -> None:
    told = Told()
    told.flood()
    told.becomes(end)
    assert told.states[-1] is end
    assert len(told.heard) == BURST + 1


def test_at_the_end_nothing_is_held_back() -> None:
    told = Told()
    told.telling.hold()
    told.becomes(S.RECONNECTING, S.STOPPED)
    told.telling.finish(0.0)
    assert told.states == [S.RECONNECTING, S.STOPPED]


@given(
    st.lists(
        st.one_of(
            st.sampled_from(list(S)),
            st.sampled_from(["hold", "release"]),
            st.floats(min_value=0, max_value=10, allow_nan=False),
        ),
        max_size=300,
    )
)
def test_whatever_happens_the_last_state_is_told_in_the_end(
    story: list[VpnState | str | float],
) -> None:
    told, now, holds = Told(), 0.0, 0
    last = None
    for step in story:
        match step:
            case VpnState():
                last = step
                told.becomes(step, now=now)
            case "hold":
                told.telling.hold()
                holds += 1
            case "release":
                if holds:
                    holds -= 1
                    told.telling.release(now)
            case float():
                now += step
                told.telling.go_on(now)
    told.telling.finish(now)
    while told.telling.is_late:
        now += 1 / PER_S
        told.telling.go_on(now)
    if last is not None:
        assert told.states[-1] is last
    assert all(one != other for one, other in zip(told.heard, told.heard[1:], strict=False))
    ends = sum(state in ENDED for state in told.states)
    assert len(told.heard) - ends <= BURST + now * PER_S + 1
