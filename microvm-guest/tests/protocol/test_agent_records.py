"""Records of files: whole, byte by byte, with what follows, and cut short."""

import contextlib
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.protocol.frames import ProtocolViolation
from microvm_guest.protocol.records import (
    HEADER,
    MAX_NAME,
    MAX_RECORD,
    MAX_TARGET,
    Entry,
    InfoRecord,
    Record,
    RecordKind,
    RecordReader,
    decode_entry,
    decode_error,
    decode_info,
    encode_error,
    is_one_name,
)

names = st.binary(min_size=1, max_size=MAX_NAME).filter(is_one_name)
times = st.integers(-(2**63), 2**63 - 1)
modes = st.integers(0, 0o7777)
targets = st.binary(min_size=1, max_size=300).map(lambda raw: raw.replace(b"\0", b"x"))
entries = st.one_of(
    st.builds(
        Entry,
        kind=st.sampled_from([RecordKind.FILE, RecordKind.DIRECTORY]),
        mode=modes,
        mtime_ns=times,
        name=names,
    ),
    st.builds(
        Entry,
        kind=st.just(RecordKind.SYMLINK),
        mode=modes,
        mtime_ns=times,
        name=names,
        target=targets,
    ),
)
infos = st.builds(
    InfoRecord,
    mode=st.builds(
        lambda kind, bits: kind | bits, st.sampled_from([stat.S_IFREG, stat.S_IFLNK]), modes
    ),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    size=st.integers(0, 2**64 - 1),
    mtime_ns=times,
    name=names,
    target=st.just(b""),
)


def one(raw):
    reader = RecordReader()
    reader.feed(raw)
    record = reader.next_record()
    assert reader.buffered == 0
    return record


@given(entries)
def test_an_entry_is_read_as_it_was_written(entry):
    assert decode_entry(one(entry.encode()), root=False) == entry


@given(infos)
def test_so_is_what_is_told_of_a_file(info):
    assert decode_info(one(info.encode()), root=False) == info


@given(st.integers(1, 4095), st.binary(max_size=300))
def test_so_is_an_error(number, path):
    assert decode_error(one(encode_error(number, path))) == (number, path)


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=8), st.integers(1, 300))
def test_records_come_whole_however_the_bytes_come(payloads, step):
    raw = b"".join(Record(RecordKind.DATA, payload).encode() for payload in payloads)
    reader, read = RecordReader(), []
    for start in range(0, len(raw), step):
        reader.feed(raw[start : start + step])
        while (record := reader.next_record()) is not None:
            read.append(record.payload)
    assert read == payloads
    reader.feed(b"\1")
    assert reader.next_record() is None


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(MAX_RECORD + 1, RecordKind.DATA, 0, 0),
        HEADER.pack(2**32 - 1, RecordKind.DATA, 0, 0),
        HEADER.pack(0, 0, 0, 0),
        HEADER.pack(0, 10, 0, 0),
        HEADER.pack(0, RecordKind.DATA, 0, 0),
        HEADER.pack(0, RecordKind.END, 1, 0),
        HEADER.pack(0, RecordKind.END, 0, 1),
    ],
)
def test_a_header_that_is_none_is_refused_before_its_payload_comes(header):
    reader = RecordReader()
    reader.feed(header)
    with pytest.raises(ProtocolViolation):
        reader.next_record()


@given(st.binary(max_size=400))
def test_any_bytes_are_records_or_a_violation(raw):
    reader = RecordReader()
    reader.feed(raw)
    try:
        while (record := reader.next_record()) is not None:
            for decode in (
                lambda record: decode_entry(record, root=False),
                lambda record: decode_info(record, root=False),
                decode_error,
            ):
                with contextlib.suppress(ProtocolViolation):
                    decode(record)
    except ProtocolViolation:
        pass


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"/etc", b"a\0", b"n" * 256])
def test_what_is_no_name_of_one_directory_is_refused(name):
    raw = Entry(kind=RecordKind.FILE, mode=0o644, mtime_ns=0, name=name).encode()
    with pytest.raises(ProtocolViolation):
        decode_entry(one(raw), root=False)
    decode_entry(one(raw), root=True)


@pytest.mark.parametrize("name", [b"...", b"a..", b" ", b"\xff", b"\n", b"-rf", b"n" * 255])
def test_odd_names_are_names(name):
    assert is_one_name(name)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(11),
        struct.pack("<Iq", 0o10000, 0) + b"x",
        struct.pack("<Iq", 2**31, 0) + b"x",
    ],
)
def test_an_entry_that_is_cut_short_or_has_no_such_mode_is_refused(payload):
    with pytest.raises(ProtocolViolation):
        decode_entry(Record(RecordKind.FILE, payload), root=False)


@pytest.mark.parametrize(
    "tail",
    [
        struct.pack("<H", 1) + b"l",
        struct.pack("<H", 1) + b"la\0b",
        struct.pack("<H", 9) + b"link",
        struct.pack("<H", 1) + b"l" + b"x" * (MAX_TARGET + 1),
    ],
    ids=["nowhere", "nul", "cut-short", "too-long"],
)
def test_a_link_that_leads_nowhere_is_refused(tail):
    with pytest.raises(ProtocolViolation):
        decode_entry(Record(RecordKind.SYMLINK, struct.pack("<Iq", 0o777, 0) + tail), root=False)


@pytest.mark.parametrize("number", [0, 4096, 2**32 - 1])
def test_an_error_of_no_such_number_is_refused(number):
    with pytest.raises(ProtocolViolation):
        decode_error(Record(RecordKind.ERROR, struct.pack("<I", number)))


@pytest.mark.parametrize(
    ("mode", "name", "target"),
    [
        (0o644, b"x", b""),
        (0o200000 | stat.S_IFREG, b"x", b""),
        (stat.S_IFREG, b"x", b"target"),
        (stat.S_IFLNK, b"x", b"t" * 4096),
        (stat.S_IFREG, b"..", b""),
    ],
)
def test_info_of_what_can_not_be_is_refused(mode, name, target):
    raw = InfoRecord(mode=mode, uid=0, gid=0, size=0, mtime_ns=0, name=name, target=target).encode()
    with pytest.raises(ProtocolViolation):
        decode_info(one(raw), root=False)
