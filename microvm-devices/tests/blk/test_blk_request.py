"""From chain to request: cut anywhere, judged without a sum that wraps. Rows 35 to 37, 39, 40."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.errors import QueueError
from microvm.testing.queue_driver import QueueDriver
from microvm.virtio.chain import DescriptorChain
from microvm_devices.blk import limits
from microvm_devices.blk.layout import (
    F_DISCARD,
    F_WRITE_ZEROES,
    HEADER,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    SEGMENT_F_UNMAP,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
)
from microvm_devices.blk.request import PENDING, Request, Segment, judge, parse, read_segments
from microvm_devices.blk.testing import pack_segments

DISK = 100 * 512
BOTH = F_DISCARD | F_WRITE_ZEROES


def chain(readable: Sequence[bytes], writable: Sequence[int]) -> DescriptorChain:
    driver = QueueDriver(size=64)
    driver.add(readable, writable)
    popped = driver.queue().pop()
    assert popped is not None
    return popped


def request(type_: int, sector: int, data: bytes = b"", room: int = 0) -> Request:
    readable = [HEADER.pack(type_, 0, sector), *([data] if data else [])]
    return parse(chain(readable, [*([room] if room else []), 1]))


def judged(
    type_: int,
    sector: int,
    data: bytes = b"",
    room: int = 0,
    *,
    read_only: bool = False,
    features: int = BOTH,
) -> int:
    made = request(type_, sector, data, room)
    judge(made, size=DISK, read_only=read_only, features=features)
    return made.status


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(at), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


# --- 35: cut anywhere ------------------------------------------------------------------------


@given(st.lists(st.integers(0, 1040), max_size=12))
def test_header_and_data_of_a_write_may_be_cut_anywhere(edges: list[int]) -> None:
    """Row 35."""
    payload = bytes(range(256)) * 4
    made = parse(chain(cut(HEADER.pack(T_OUT, 7, 3) + payload, edges), [1]))
    assert (made.type, made.offset, made.length) == (T_OUT, 3 * 512, 1024)
    assert b"".join(made.data) == payload


def test_and_after_each_byte() -> None:
    """Row 35, each byte in a descriptor of its own up to the queue's size."""
    whole = HEADER.pack(T_OUT, 0, 9) + bytes(range(40))
    for edge in range(len(whole) + 1):
        made = parse(chain([whole[:edge], whole[edge:]], [1]))
        assert (made.offset, b"".join(made.data)) == (9 * 512, bytes(range(40)))
    made = parse(chain([bytes([byte]) for byte in whole], [1]))
    assert (made.offset, b"".join(made.data)) == (9 * 512, bytes(range(40)))


@given(st.lists(st.integers(0, 1025), max_size=12))
def test_the_status_is_the_last_writable_byte_wherever_it_lies(edges: list[int]) -> None:
    """Row 35: also inside a larger buffer."""
    lengths = [len(part) for part in cut(bytes(1025), edges)]
    popped = chain([HEADER.pack(T_IN, 0, 0)], lengths)
    made = parse(popped)
    assert made.length == 1024
    made.status = S_OK
    made.written = 1024
    for view in made.data:
        view[:] = b"\x77" * len(view)
    assert made.finish() == 1025
    whole = b"".join(popped.writable)
    assert whole == b"\x77" * 1024 + bytes([S_OK])


@pytest.mark.parametrize("length", [*range(1, 16)])
def test_a_header_that_is_not_whole_breaks_the_queue(length: int) -> None:
    """Row 35."""
    with pytest.raises(QueueError, match=f"{length} bytes"):
        parse(chain([bytes(length)], [1]))


def test_a_request_without_a_byte_for_the_status_breaks_the_queue() -> None:
    """Row 35: missing, or readable, which is the same."""
    with pytest.raises(QueueError, match="status"):
        parse(chain([HEADER.pack(T_OUT, 0, 0), bytes(512), b"\xff"], []))
    with pytest.raises(QueueError, match="header"):
        parse(chain([], [16, 512, 1]))


# --- used lengths (row 34) -------------------------------------------------------------------


def test_a_write_counts_its_status_byte_and_nothing_before_it() -> None:
    made = request(T_OUT, 0, bytes(512))
    made.status = S_OK
    assert made.finish() == 1
    # The device has no use for these 8 bytes, and so the count ends before them.
    made = parse(chain([HEADER.pack(T_OUT, 0, 0), bytes(512)], [8, 1]))
    made.status = S_OK
    assert made.finish() == 0


def test_a_read_that_failed_counts_what_it_has_filled() -> None:
    made = request(T_IN, 0, room=1024)
    made.status, made.written = S_IOERR, 512
    assert made.finish() == 512
    assert bytes(made.status_at) == bytes([S_IOERR])


# --- 36: types ---------------------------------------------------------------------------------


@given(st.integers(0, 0xFFFF_FFFF))
def test_a_type_that_is_not_known_is_not_supported(type_: int) -> None:
    """Row 36: SCSI commands (2), legacy types with the barrier bit, and all the others."""
    known = {T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES}
    assert type_ in known or judged(type_, 0, bytes(512)) == S_UNSUPP


@pytest.mark.parametrize("type_", [2, 3, 5, 14, 0x8000_0000, 0x8000_0001, 0xFFFF_FFFF])
def test_scsi_secure_erase_and_legacy_types_are_not_supported(type_: int) -> None:
    """Row 36."""
    assert judged(type_, 0) == S_UNSUPP


def test_discard_and_write_zeroes_are_not_supported_unless_negotiated() -> None:
    data = pack_segments((0, 1, 0))
    assert judged(T_DISCARD, 0, data, features=F_WRITE_ZEROES) == S_UNSUPP
    assert judged(T_WRITE_ZEROES, 0, data, features=F_DISCARD) == S_UNSUPP
    assert judged(T_DISCARD, 0, data) == judged(T_WRITE_ZEROES, 0, data) == PENDING


# --- 37: ranges --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sector", "length", "status"),
    [
        (0, 512, PENDING),
        (99, 512, PENDING),
        (98, 1024, PENDING),
        (0, 0, PENDING),
        (100, 0, PENDING),
        (100, 512, S_IOERR),
        (99, 1024, S_IOERR),
        (101, 0, S_IOERR),
        (0, 511, S_IOERR),
        (0, 513, S_IOERR),
        (99, 1, S_IOERR),
        ((1 << 64) - 1, 512, S_IOERR),
        ((1 << 64) - 1, 0, S_IOERR),
        (1 << 55, 512, S_IOERR),  # sector * 512 is 2^64
        ((1 << 55) - 1, 1024, S_IOERR),
        (1 << 63, 512, S_IOERR),
    ],
)
def test_data_lies_within_the_disk_in_whole_sectors(sector: int, length: int, status: int) -> None:
    """Row 37."""
    assert judged(T_IN, sector, room=length) == status
    assert judged(T_OUT, sector, bytes(length)) == status


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 2048))
def test_and_nothing_else_is_let_through(sector: int, length: int) -> None:
    """Row 37, any numbers."""
    fits = length % 512 == 0 and sector * 512 + length <= DISK
    assert (judged(T_IN, sector, room=length) == PENDING) == fits


# --- 38: read-only -----------------------------------------------------------------------------


@pytest.mark.parametrize("features", [0, BOTH])
def test_a_read_only_disk_takes_reads_flushes_and_its_name(features: int) -> None:
    """Row 38, also for a driver that has not accepted F_RO."""
    only = {"read_only": True, "features": features}
    segment = pack_segments((0, 1, 0))
    assert judged(T_IN, 0, room=512, **only) == PENDING
    assert judged(T_GET_ID, 0, room=20, **only) == PENDING
    assert judged(T_FLUSH, 0, **only) == S_OK
    assert judged(T_OUT, 0, bytes(512), **only) == S_IOERR
    assert judged(T_DISCARD, 0, segment, **only) == S_IOERR
    assert judged(T_WRITE_ZEROES, 0, segment, **only) == S_IOERR


# --- 39: segments ------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", [T_DISCARD, T_WRITE_ZEROES])
@pytest.mark.parametrize(
    "length", [0, 1, 15, 17, 31, 16 * limits.MAX_SEGMENTS + 16, 16 * limits.MAX_SEGMENTS + 1, 65536]
)
def test_segments_are_whole_and_not_more_than_offered(type_: int, length: int) -> None:
    """Row 39."""
    assert judged(type_, 0, bytes(length)) == S_IOERR


def test_as_many_segments_as_offered_are_taken() -> None:
    """Row 39."""
    made = request(T_DISCARD, 0, pack_segments(*[(n, 1, 0) for n in range(limits.MAX_SEGMENTS)]))
    judge(made, size=DISK, read_only=False, features=BOTH)
    assert made.status == PENDING
    assert read_segments(made, size=DISK) == [
        Segment(n * 512, 512, False) for n in range(limits.MAX_SEGMENTS)
    ]


@pytest.mark.parametrize(
    ("type_", "segment", "outcome"),
    [
        (T_WRITE_ZEROES, (1, 2, SEGMENT_F_UNMAP), [Segment(512, 1024, True)]),
        (T_WRITE_ZEROES, (1, 2, 0), [Segment(512, 1024, False)]),
        (T_DISCARD, (1, 0, 0), [Segment(512, 0, False)]),
        (T_DISCARD, (1, 2, SEGMENT_F_UNMAP), S_UNSUPP),
        (T_DISCARD, (1, 2, 2), S_UNSUPP),
        (T_WRITE_ZEROES, (1, 2, 3), S_UNSUPP),
        (T_WRITE_ZEROES, (1, 2, 1 << 31), S_UNSUPP),
        (T_DISCARD, (0, 101, 0), S_IOERR),
        (T_DISCARD, (99, 2, 0), S_IOERR),
        (T_WRITE_ZEROES, (0, 0xFFFF_FFFF, 0), S_IOERR),
        (T_WRITE_ZEROES, ((1 << 64) - 1, 1, 0), S_IOERR),
        (T_WRITE_ZEROES, (1 << 55, 1, 0), S_IOERR),
    ],
)
def test_each_segment_is_within_the_disk_and_has_known_flags(
    type_: int, segment: tuple[int, int, int], outcome: int | list[Segment]
) -> None:
    """Row 39."""
    assert read_segments(request(type_, 0, pack_segments(segment)), size=DISK) == outcome
    # One that can't be served among others that can: nothing is done.
    pair = read_segments(request(type_, 0, pack_segments((0, 1, 0), segment)), size=DISK)
    assert pair == (outcome if isinstance(outcome, int) else [Segment(0, 512, False), *outcome])


def test_the_ranges_that_were_judged_are_those_that_are_served() -> None:
    """Row 39: a driver that writes others over them changes nothing any more."""
    made = request(T_WRITE_ZEROES, 0, pack_segments((1, 2, 0)))
    judge(made, size=DISK, read_only=False, features=BOTH)
    for view in made.data:
        view[:] = b"\xff" * len(view)
    assert (made.status, made.segments) == (PENDING, [Segment(512, 1024, False)])


def test_what_a_request_counts_for_is_what_it_makes_the_host_do() -> None:
    weights = {}
    for type_ in (T_OUT, T_DISCARD, T_WRITE_ZEROES):
        made = request(type_, 0, pack_segments((0, 10, 0), (20, 1, 0)))
        judge(made, size=DISK, read_only=False, features=BOTH)
        weights[type_] = made.weight
    assert weights == {
        T_OUT: 32,
        T_DISCARD: 32 + 2 * limits.DISCARD_WEIGHT,
        T_WRITE_ZEROES: 32 + 11 * 512,
    }


def test_a_segment_may_not_be_longer_than_offered_on_a_disk_that_is() -> None:
    """Row 39."""
    most = limits.MAX_SEGMENT_SECTORS
    huge = 1 << 60
    assert read_segments(request(T_DISCARD, 0, pack_segments((0, most, 0))), size=huge) == [
        Segment(0, most * 512, False)
    ]
    long = request(T_DISCARD, 0, pack_segments((0, most + 1, 0)))
    assert read_segments(long, size=huge) == S_IOERR
