"""Whatever an agent sends is events or `GuestProtocolError`, in bounded memory."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from microvm.errors import GuestProtocolError
from microvm_guest.protocol import (
    NEED_DATA,
    AgentConnection,
    AttachRequest,
    Notice,
    RunRequest,
)
from microvm_guest.protocol import events as e
from microvm_guest.protocol.frames import (
    FROM_AGENT,
    HEADER,
    MAX_PAYLOAD,
    Channel,
    Frame,
    FrameType,
)
from microvm_guest.testing import hello_payload

WINDOW = 100
COMMANDS = 4

numbers = st.sampled_from([0, 1, 2, 9, 64, 65, 100, 255, 256, 2**31, 2**32 - 1])
payloads = st.one_of(
    st.binary(max_size=120),
    st.builds(lambda a, b: struct.pack("<II", a, b), numbers, numbers),
    st.builds(lambda a: struct.pack("<I", a), numbers),
    st.just(hello_payload()),
)
frames = st.builds(
    Frame,
    st.sampled_from([FrameType(kind) for kind in FROM_AGENT]),
    st.integers(0, COMMANDS + 1),
    payloads,
    st.sampled_from([0, 0, 1, 2]),
).map(Frame.encode)
headers = st.builds(
    HEADER.pack,
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
)


def host():
    connection = AgentConnection()
    connection.greet(0)
    for _ in range(COMMANDS - 1):
        connection.run(RunRequest(argv=["x"], window=WINDOW), 0)
    connection.attach(AttachRequest(job=1, window=WINDOW))
    connection.ping()
    connection.ask_status()
    connection.ask_jobs()
    connection.notify(Notice.PAUSING, 0)
    connection.notify(Notice.RESUMED, 0)
    connection.shutdown()
    return connection


def drain(connection):
    while (event := connection.next_event()) is not NEED_DATA:
        yield event


@given(st.lists(st.one_of(frames, frames, frames, headers), max_size=40), st.booleans())
@settings(max_examples=100)
def test_any_frames_in_any_order_are_events_or_a_protocol_error(raws, greets):
    connection = host()
    if greets:
        raws = [Frame(FrameType.HELLO, payload=hello_payload()).encode(), *raws]
    printed = {channel: dict.fromkeys(range(COMMANDS + 2), 0) for channel in Channel}
    ended = set()
    try:
        for raw in raws:
            connection.receive_data(raw)
            for event in drain(connection):
                stream = getattr(event, "stream", None)
                assert stream not in ended
                if isinstance(event, e.OutputReceived):
                    printed[event.channel][event.stream] += len(event.data)
                    assert printed[event.channel][event.stream] <= WINDOW
                elif isinstance(event, e.CommandExited | e.CommandRefused):
                    ended.add(stream)
    except GuestProtocolError:
        connection.receive_data(bytes(1000))
        assert connection._reader.buffered <= HEADER.size + MAX_PAYLOAD + 1000


@given(st.binary(max_size=400), st.integers(1, 64))
@settings(max_examples=100)
def test_any_bytes_are_events_or_a_protocol_error(raw, step):
    connection = host()
    connection.receive_data(Frame(FrameType.HELLO, payload=hello_payload()).encode())
    try:
        for start in range(0, len(raw), step):
            connection.receive_data(raw[start : start + step])
            list(drain(connection))
    except GuestProtocolError:
        pass
