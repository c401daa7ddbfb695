"""The connection's states and credit, without any IO."""

import itertools

import pytest

from microvm_devices.vsock.connection import (
    TRANSITIONS,
    Action,
    Event,
    State,
    VsockConnection,
    connection_key,
    shutdown_event,
)
from microvm_devices.vsock.packet import Shutdown

U32 = 0xFFFF_FFFF


def connection(state: State = State.OPEN, buf_alloc: int = 1000) -> VsockConnection:
    return VsockConnection(host_port=1, guest_port=2, buf_alloc=buf_alloc, state=state)


def after(*events: Event, state: State = State.OPEN) -> VsockConnection:
    conn = connection(state)
    for event in events:
        conn.handle(event)
    return conn


# --- states --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_any_event_in_any_state_leads_to_a_state_and_never_raises(
    state: State, event: Event
) -> None:
    conn = connection(state)
    action = conn.handle(event)
    assert conn.state in State
    if (state, event) not in {(s, e) for s, row in TRANSITIONS.items() for e in row}:
        assert (conn.state, action) == (state, Action.NOTHING)


@pytest.mark.parametrize("state", list(State))
def test_an_rst_is_never_answered_by_an_rst(state: State) -> None:
    assert not connection(state).handle(Event.RST) & Action.SEND_RST


@pytest.mark.parametrize("state", list(State))
def test_an_rst_ends_any_connection(state: State) -> None:
    assert after(Event.RST, state=state).state is State.CLOSED


def test_closed_is_final() -> None:
    for event in Event:
        assert after(event, state=State.CLOSED).state is State.CLOSED


def test_every_state_can_be_left_for_closed_within_three_events() -> None:
    for state in State:
        ends = {after(*events, state=state).state for events in itertools.product(Event, repeat=3)}
        assert State.CLOSED in ends


def test_a_host_that_asks_is_established_by_response_alone() -> None:
    conn = connection(State.CONNECTING)
    assert conn.handle(Event.RESPONSE) == Action.ESTABLISH
    assert conn.state is State.OPEN


@pytest.mark.parametrize(
    "event",
    [
        Event.RST,
        Event.CREDIT_REQUEST,
        Event.VIOLATION,
        Event.SHUTDOWN_SEND,
        Event.SHUTDOWN_RECEIVE,
        Event.SHUTDOWN_BOTH,
    ],
)
def test_any_other_answer_to_a_request_refuses(event: Event) -> None:
    action = connection(State.CONNECTING).handle(event)
    assert action & Action.REFUSE
    assert bool(action & Action.SEND_RST) == (event is not Event.RST)


def test_a_second_response_is_a_violation() -> None:
    assert connection().handle(Event.RESPONSE) == Action.SEND_RST | Action.CLOSE


# --- half-close: who said what, in which order -----------------------------------------------


def test_the_guests_shutdown_of_sending_ends_one_direction_only() -> None:
    conn = connection()
    assert conn.handle(Event.SHUTDOWN_SEND) == Action.FINISH_WRITING
    assert (conn.reads_host, conn.takes_data) == (True, False)


def test_the_guests_shutdown_of_receiving_ends_the_other_direction_only() -> None:
    conn = connection()
    assert conn.handle(Event.SHUTDOWN_RECEIVE) == Action.STOP_READING
    assert (conn.reads_host, conn.takes_data) == (False, True)


def test_the_hosts_end_of_file_is_told_as_shutdown_of_sending() -> None:
    conn = connection()
    assert conn.handle(Event.HOST_EOF) == Action.SEND_SHUTDOWN
    assert conn.shutdown == Shutdown.SEND
    assert (conn.reads_host, conn.takes_data) == (False, True)


def test_a_host_that_stops_reading_is_told_as_shutdown_of_receiving() -> None:
    conn = connection()
    assert conn.handle(Event.HOST_DEAF) == Action.SEND_SHUTDOWN | Action.DISCARD
    assert conn.shutdown == Shutdown.RECEIVE
    assert (conn.reads_host, conn.takes_data) == (True, False)


@pytest.mark.parametrize(
    "events",
    [
        (Event.SHUTDOWN_BOTH,),
        (Event.SHUTDOWN_SEND, Event.SHUTDOWN_RECEIVE),
        (Event.SHUTDOWN_RECEIVE, Event.SHUTDOWN_SEND),
        (Event.SHUTDOWN_SEND, Event.SHUTDOWN_BOTH),
        (Event.HOST_EOF, Event.SHUTDOWN_SEND),
        (Event.HOST_EOF, Event.SHUTDOWN_BOTH),
    ],
)
def test_when_the_guest_says_the_last_shutdown_we_confirm_and_deliver_what_it_sent(
    events: tuple[Event, ...],
) -> None:
    conn = connection()
    for event in events[:-1]:
        assert not conn.handle(event) & (Action.SEND_RST | Action.FINISH | Action.CLOSE)
    assert conn.handle(events[-1]) == Action.SEND_RST | Action.FINISH
    assert conn.state is State.CLOSED


@pytest.mark.parametrize(
    "events",
    [
        (Event.HOST_GONE,),
        (Event.HOST_EOF, Event.HOST_DEAF),
        (Event.HOST_DEAF, Event.HOST_EOF),
        (Event.SHUTDOWN_SEND, Event.HOST_EOF),
        (Event.SHUTDOWN_RECEIVE, Event.HOST_DEAF),
    ],
)
def test_when_the_host_ends_last_the_guest_is_told_both_and_its_rst_awaited(
    events: tuple[Event, ...],
) -> None:
    conn = after(*events)
    assert conn.state is State.LINGERING
    assert conn.shutdown == Shutdown.BOTH
    assert not conn.handle(Event.RST) & (Action.CLOSE | Action.DISCARD | Action.SEND_RST)
    assert conn.state is State.CLOSED


def test_a_guest_that_never_confirms_is_reset() -> None:
    assert after(Event.HOST_GONE).handle(Event.EXPIRED) & Action.SEND_RST


@pytest.mark.parametrize("events", [(), (Event.HOST_EOF,)])
def test_an_rst_from_a_guest_that_was_not_done_sending_discards(events: tuple[Event, ...]) -> None:
    assert after(*events).handle(Event.RST) == Action.CLOSE


@pytest.mark.parametrize("events", [(Event.SHUTDOWN_SEND,), (Event.SHUTDOWN_SEND, Event.HOST_EOF)])
def test_an_rst_from_a_guest_that_was_done_sending_delivers(events: tuple[Event, ...]) -> None:
    assert after(*events).handle(Event.RST) == Action.FINISH


def test_shutdown_flags_are_events_and_reserved_ones_are_ignored() -> None:
    assert [shutdown_event(flags) for flags in range(4)] == [
        None,
        Event.SHUTDOWN_RECEIVE,
        Event.SHUTDOWN_SEND,
        Event.SHUTDOWN_BOTH,
    ]
    assert shutdown_event(0xFFFF_FFF8) is None


# --- credit ----------------------------------------------------------------------------------


def test_what_may_be_sent_is_the_peers_buffer_less_what_is_on_its_way() -> None:
    conn = connection()
    conn.peer_buf_alloc = 100
    assert conn.peer_free() == 100
    conn.sent(60)
    assert conn.peer_free() == 40
    conn.peer_fwd_cnt = 10
    assert conn.peer_free() == 50


@pytest.mark.parametrize("start", [0, U32 - 50, U32, 1 << 31])
def test_credit_survives_the_wrap_of_its_counters(start: int) -> None:
    conn = connection(buf_alloc=100)
    conn.tx_cnt = conn.peer_fwd_cnt = start
    conn.rx_cnt = conn.fwd_cnt = conn.told_fwd_cnt = start
    conn.peer_buf_alloc = 100
    conn.sent(80)
    assert conn.tx_cnt == (start + 80) & U32
    assert conn.peer_free() == 20
    conn.peer_fwd_cnt = (start + 80) & U32
    assert conn.peer_free() == 100
    conn.received(80)
    assert conn.free() == 20
    assert conn.flushed(80)
    assert conn.free() == 100
    assert conn.fwd_cnt == (start + 80) & U32


@pytest.mark.parametrize(
    ("buf_alloc", "fwd_cnt", "free"),
    [
        pytest.param(0, 0, 0, id="no buffer at all"),
        pytest.param(40, 0, 0, id="a buffer that shrank below what is on its way"),
        pytest.param(100, 100, 0, id="more forwarded than was sent"),
        pytest.param(100, 1 << 31, 0, id="forwarded half way round"),
        pytest.param(100, U32 - 9, 30, id="forwarded counted backwards: less than honest credit"),
    ],
)
def test_a_peer_with_impossible_credit_gets_no_more_than_it_can_take(
    buf_alloc: int, fwd_cnt: int, free: int
) -> None:
    conn = connection()
    conn.sent(60)
    conn.peer_buf_alloc, conn.peer_fwd_cnt = buf_alloc, fwd_cnt
    assert conn.peer_free() == free


def test_only_what_went_into_the_hosts_socket_is_credited() -> None:
    conn = connection(buf_alloc=100)
    conn.received(100)
    assert (conn.free(), conn.fwd_cnt) == (0, 0)
    conn.flushed(30)
    assert (conn.free(), conn.fwd_cnt) == (30, 30)


def test_the_guest_is_told_when_less_than_half_is_free_in_its_eyes() -> None:
    conn = connection(buf_alloc=100)
    conn.peer_buf_alloc = 1000
    conn.received(50)
    assert not conn.flushed(50)
    conn.received(1)
    assert conn.flushed(1)
    conn.sent(0)
    conn.received(50)
    assert not conn.flushed(50)


@pytest.mark.parametrize("own", [0, 1, 20])
def test_a_guest_that_sends_no_further_than_its_own_buffer_is_told_in_time(own: int) -> None:
    conn = connection(buf_alloc=100)
    conn.peer_buf_alloc = own
    length = max(own, 1)
    conn.received(length)
    assert conn.flushed(length)


def test_a_connection_is_known_by_both_ports() -> None:
    ports = [0, 1, U32]
    keys = {connection_key(host, guest) for host in ports for guest in ports}
    assert len(keys) == 9
