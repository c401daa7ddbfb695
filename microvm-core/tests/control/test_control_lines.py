"""Lines of a control socket: bounded, and anything else than a request is told so. Row 86."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.control.lines import (
    MAX_REQUEST_BYTES,
    VERBS,
    BadRequest,
    LineReader,
    Refused,
    answer,
    parse_answer,
    parse_device,
    parse_request,
    refusal,
    request,
)
from microvm.errors import GuestGone


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_arrives(verb: str) -> None:
    assert parse_request(request(verb).rstrip(b"\n")) == verb


def test_answers_and_refusals_arrive() -> None:
    assert parse_answer(answer({"a": [1, "\x1b"]})) == {"a": [1, "\x1b"]}
    with pytest.raises(Refused, match=r"It ended\.\nStart it\.") as caught:
        parse_answer(refusal(GuestGone("It ended.", remedy="Start it.")))
    assert caught.value.code == "control.refused"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"do": null}',
        b'{"do": "format-the-disk"}',
        b'{"do": ["stop"]}',
        b'{"do": "stop"',
        b"[" * 4000,
        b'{"do":' * 600,
        b"9" * 4096,
        b"NaN",
        b'{"do": "stop"}{"do": "stop"}',
        b'\xff\xfe{"do": "stop"}',
        b"GET / HTTP/1.1",
    ],
)
def test_what_is_no_request_is_told_so(line: bytes) -> None:
    """Row 86: nesting, long numbers, NaN, bad UTF-8, unknown operations."""
    with pytest.raises(BadRequest):
        parse_request(line)


def test_the_last_of_two_equal_keys_counts() -> None:
    assert parse_request(b'{"do": "stop", "do": "info"}') == "info"


def test_what_is_asked_of_a_device_arrives() -> None:
    line = request("device-command", device="balloon0", name="target", arguments={"mib": 7})
    assert parse_device(line) == ("balloon0", "target", {"mib": 7})
    line = request("device-stream", device="console0", name="agent")
    assert parse_device(line) == ("console0", "agent", {})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"device": "balloon0"},
        {"device": 0, "name": "target"},
        {"device": "balloon0", "name": None},
        {"device": "balloon0", "name": "target", "arguments": [7]},
        {"device": "balloon0", "name": "target", "arguments": "mib=7"},
    ],
)
def test_what_is_asked_of_no_device_is_told_so(more: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        parse_device(request("device-command", **more))


@given(st.binary(max_size=200))
def test_any_line_is_a_verb_or_a_typed_error(line: bytes) -> None:
    for parse in (parse_request, parse_answer, parse_device):
        try:
            parse(line)
        except (BadRequest, Refused):
            continue


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=6), st.data())
def test_lines_are_the_same_however_they_come(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"tail"
    reader, got, left = LineReader(12), [], stream
    while left:
        count = data.draw(st.integers(1, len(left)))
        reader.feed(left[:count])
        left = left[count:]
        while (line := reader.next()) is not None:
            got.append(line)
    assert got == lines
    assert reader.rest() == b"tail"
    assert reader.rest() == b""


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_line_that_is_too_long_is_refused_before_it_has_ended(ending: bytes) -> None:
    reader = LineReader(MAX_REQUEST_BYTES)
    reader.feed(b"x" * (MAX_REQUEST_BYTES + 1) + ending)
    with pytest.raises(BadRequest):
        reader.next()


def test_a_line_of_exactly_the_limit_passes() -> None:
    reader = LineReader(8)
    reader.feed(b"12345678\nrest")
    assert reader.next() == b"12345678"
    assert reader.next() is None
