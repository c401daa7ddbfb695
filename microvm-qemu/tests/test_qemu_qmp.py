"""QMP without a QEMU."""

import contextlib
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_qemu._qmp import (
    MAX_LINE_BYTES,
    Event,
    QmpMessage,
    QmpProtocolError,
    QmpSession,
    Refusal,
    Reply,
)

STREAM = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}\r\n'
    b'{"return": {}, "id": 1}\r\n'
    b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}\r\n'
    b'{"error": {"class": "GenericError", "desc": "no"}, "id": 2}\r\n'
    b'{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}\r\n'
)
MEANS: list[QmpMessage] = [
    Reply(1, {}),
    Event("STOP", {}),
    Refusal(2, "no"),
    Event("SHUTDOWN", {"guest": True, "reason": "guest-reset"}),
]


def test_a_stream_is_its_messages() -> None:
    assert QmpSession().receive(STREAM) == MEANS


def test_byte_by_byte_it_is_the_same() -> None:
    session = QmpSession()
    got: list[QmpMessage] = []
    for byte in STREAM:
        got += session.receive(bytes([byte]))
    assert got == MEANS


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_cut_anywhere_it_is_the_same(cuts: list[int]) -> None:
    session = QmpSession()
    edges = [0, *sorted(cuts), len(STREAM)]
    got: list[QmpMessage] = []
    for begin, end in itertools.pairwise(edges):
        got += session.receive(STREAM[begin:end])
    assert got == MEANS


def test_half_a_line_waits_for_the_rest() -> None:
    session = QmpSession()
    assert session.receive(b'{"return": {}, "id"') == []
    assert session.receive(b": 7}") == []
    assert session.receive(b'\n{"ret') == [Reply(7, {})]


def test_a_command_is_one_line_of_json_with_its_number() -> None:
    line = QmpSession().command(5, "stop")
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"execute": "stop", "id": 5}
    with_arguments = QmpSession().command(6, "x", {"command-line": "a\nb"})
    assert with_arguments.count(b"\n") == 1
    assert json.loads(with_arguments)["arguments"] == {"command-line": "a\nb"}


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"[1, 2]",
        b"7",
        b'"QMP"',
        b'{"return"',
        b"\xff\xfe\xfd",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"return": ' + b"9" * 10_000 + b', "id": 1}',
        b'{"error": {"class": "GenericError", "desc": "not JSON"}}',
    ],
)
def test_what_is_not_qmp_is_refused_with_a_typed_error(line: bytes) -> None:
    with pytest.raises(QmpProtocolError):
        QmpSession().receive(line + b"\n")


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'{"return": {}}',
        b'{"return": {}, "id": "one"}',
        b'{"event": 7}',
        b'{"error": 3, "id": 1}',
        b'{"news": true}',
    ],
)
def test_a_message_of_an_unknown_kind_is_passed_over(line: bytes) -> None:
    assert QmpSession().receive(line + b"\n") == []


def test_an_events_data_of_the_wrong_kind_is_no_data() -> None:
    assert QmpSession().receive(b'{"event": "X", "data": [1]}\n') == [Event("X", {})]


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    session = QmpSession()
    fed = 0
    with pytest.raises(QmpProtocolError, match="over"):
        while fed < 2 * MAX_LINE_BYTES:
            session.receive(b" " * 65536)
            fed += 65536
    assert fed <= MAX_LINE_BYTES


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_the_typed_error(data: bytes) -> None:
    with contextlib.suppress(QmpProtocolError):
        QmpSession().receive(data + b"\n")
