"""The control queue's state machine; row 64 of the hazard catalogue."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.errors import QueueError
from microvm_devices.console.control import CONTROL, Control, Event

READY, OPEN = Event.PORT_READY, Event.PORT_OPEN


def say(control: Control, number: int, event: int, value: int = 1) -> None:
    control.receive(CONTROL.pack(number, event, value))


def hear(control: Control) -> list[tuple[int, int, int] | tuple[int, int, int, bytes]]:
    """Everything that the driver is told now."""
    heard = []
    while (message := control.pay()) is not None:
        head, tail = CONTROL.unpack_from(message), message[CONTROL.size :]
        heard.append((*head, tail) if tail else head)
    assert not control.owes
    return heard


@pytest.fixture
def control() -> Control:
    return Control(("agent", "log"), (80, 25))


def test_nobody_is_told_anything_before_the_driver_is_ready(control: Control) -> None:
    control.host_open(1, True)
    control.resize((100, 50))
    assert not control.owes


def test_every_port_is_added_and_then_described(control: Control) -> None:
    say(control, 0, Event.DEVICE_READY)
    assert hear(control) == [(n, Event.DEVICE_ADD, 0) for n in range(3)]
    say(control, 0, READY)
    assert hear(control) == [
        (0, Event.CONSOLE_PORT, 1),
        (0, Event.RESIZE, 0, struct.pack("<HH", 80, 25)),
        (0, OPEN, 1),
    ]
    say(control, 1, READY)
    assert hear(control) == [(1, Event.PORT_NAME, 1, b"agent")]
    control.host_open(2, True)
    say(control, 2, READY)
    assert hear(control) == [(2, Event.PORT_NAME, 1, b"log"), (2, OPEN, 1)]


def test_a_terminal_of_unknown_size_says_none() -> None:
    control = Control((), None)
    say(control, 0, READY)
    assert [event for _, event, _ in hear(control)] == [Event.CONSOLE_PORT, OPEN]


def test_openings_and_closings_by_the_host_are_told_in_order(control: Control) -> None:
    say(control, 1, READY)
    hear(control)
    for opens in (True, False, True):
        control.host_open(1, opens)
        assert hear(control) == [(1, OPEN, opens)]
        control.host_open(1, opens)
        assert hear(control) == []


def test_a_guest_sees_the_end_between_two_streams_however_late_it_hears(control: Control) -> None:
    say(control, 1, READY)
    control.host_open(1, True)
    hear(control)
    control.host_open(1, False)
    control.host_open(1, True)
    assert hear(control) == [(1, OPEN, 0), (1, OPEN, 1)]


def test_an_opening_that_was_over_before_it_was_told_is_left_out(control: Control) -> None:
    say(control, 1, READY)
    hear(control)
    for _ in range(1000):
        control.host_open(1, True)
        control.host_open(1, False)
    control.host_open(1, True)
    assert hear(control) == [(1, OPEN, 1)]


def test_the_guests_openings_are_told_once_each(control: Control) -> None:
    say(control, 1, READY)
    changes = [control.receive(CONTROL.pack(1, OPEN, value)) for value in (1, 1, 0, 0, 1)]
    assert [change is not None for change in changes] == [True, False, True, False, True]
    assert control.ports[1].guest_open


def test_after_a_reset_the_driver_is_told_everything_again(control: Control) -> None:
    control.host_open(1, True)
    say(control, 0, Event.DEVICE_READY)
    say(control, 1, READY)
    say(control, 1, OPEN)
    control.reset()
    assert not control.owes
    assert not control.ports[1].guest_open
    say(control, 1, READY)
    assert hear(control) == [(1, Event.PORT_NAME, 1, b"agent"), (1, OPEN, 1)]


def test_a_driver_that_can_not_take_a_port_hears_no_more_of_it(control: Control) -> None:
    control.host_open(1, True)
    say(control, 1, READY)
    say(control, 1, READY, 0)
    control.host_open(1, False)
    assert hear(control) == []


def test_the_size_is_told_as_it_is_when_its_turn_comes(control: Control) -> None:
    say(control, 0, READY)
    hear(control)
    control.resize((90, 30))
    control.resize((100, 50))
    assert hear(control) == [(0, Event.RESIZE, 0, struct.pack("<HH", 100, 50))]


# --- row 64 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "event", "value"),
    [
        (3, READY, 1),
        (0xFFFF_FFFF, OPEN, 1),
        (1, OPEN, 1),  # before READY
        (1, OPEN, 0),
        (1, Event.DEVICE_ADD, 1),
        (1, Event.DEVICE_REMOVE, 1),
        (0, Event.CONSOLE_PORT, 1),
        (1, Event.PORT_NAME, 1),
        (1, 8, 1),
        (1, 0xFFFF, 0xFFFF),
    ],
)
def test_row_64_messages_that_make_no_sense_are_ignored_and_counted(
    control: Control, number: int, event: int, value: int
) -> None:
    """Row 64: port id >= max, OPEN before READY, events that are the device's."""
    say(control, number, event, value)
    assert control.ignored == 1
    assert not control.owes
    assert not any(port.ready or port.guest_open for port in control.ports)


@pytest.mark.parametrize("length", range(CONTROL.size))
def test_row_64_a_message_that_is_too_short_is_the_drivers_fault(
    control: Control, length: int
) -> None:
    """Row 64."""
    with pytest.raises(QueueError, match=f"{length} bytes"):
        control.receive(bytes(length))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("say"), st.integers(0, 4), st.integers(0, 9), st.integers(0, 2)),
            st.tuples(st.just("host"), st.integers(1, 2), st.booleans(), st.none()),
            st.tuples(st.just("pay"), st.integers(0, 3), st.none(), st.none()),
        ),
        max_size=60,
    )
)
def test_row_64_no_sequence_makes_anything_grow_and_the_last_word_is_true(steps: list) -> None:
    """Row 64: whatever is said, what is owed is bounded and what is told at last is so."""
    control = Control(("a", "b"), (80, 25))
    told: dict[int, int] = {}

    def heard(messages: list) -> None:
        for number, event, value, *_ in messages:
            if event == OPEN:
                told[number] = value

    for kind, number, what, value in steps:
        if kind == "say":
            say(control, number, what, value)
            if what == READY:
                told.pop(number, None)
        elif kind == "host":
            control.host_open(number, what)
        else:
            for _ in range(number):
                if (message := control.pay()) is not None:
                    heard([CONTROL.unpack_from(message)])
        assert all(len(port.owed_opens) <= 2 for port in control.ports)
    messages = hear(control)
    assert len(messages) <= 3 * 6
    heard(messages)
    for port in control.ports:
        if port.ready:
            assert bool(told.get(port.id)) is port.host_open
