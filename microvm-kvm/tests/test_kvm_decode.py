"""kvm_run to exits, as a table. On any system."""

import mmap
import struct
from collections.abc import Iterator

import pytest

from microvm.exits import (
    FailEntry,
    Halt,
    InternalError,
    Interrupted,
    MmioRead,
    MmioWrite,
    PioRead,
    PioWrite,
    Shutdown,
    SystemEvent,
    UnknownExit,
    VcpuExit,
)
from microvm_kvm._decode import Decoder, answer_read, decode

SIZE = 3 * 4096
DATA_AT = 4096


def run_of(reason: int, exit_: bytes = b"", data: bytes = b"") -> memoryview:
    """A kvm_run as the kernel would leave it: `exit_` is the union's member."""
    run = bytearray(SIZE)
    struct.pack_into("<I", run, 8, reason)
    run[32 : 32 + len(exit_)] = exit_
    run[DATA_AT : DATA_AT + len(data)] = data
    return memoryview(run)


def io(direction: int, size: int, port: int, count: int, data: bytes = b"") -> memoryview:
    return run_of(2, struct.pack("<BBHIQ", direction, size, port, count, DATA_AT), data)


def mmio(address: int, data: bytes, length: int, is_write: int) -> memoryview:
    return run_of(6, struct.pack("<Q8sIB", address, data, length, is_write))


def error(suberror: int, *words: int) -> memoryview:
    return run_of(17, struct.pack(f"<II{len(words)}Q", suberror, len(words), *words))


NOT_EMULATED = struct.pack("<IIQB15s", 1, 4, 1, 15, bytes.fromhex("f30fb8c0") + bytes(11))

TABLE: list[tuple[memoryview, VcpuExit]] = [
    (io(1, 1, 0xE9, 1, b"A"), PioWrite(0xE9, 1, b"A")),
    (io(1, 2, 0xFFFF, 1, b"AB"), PioWrite(0xFFFF, 2, b"AB")),
    (io(1, 4, 0, 3, b"ABCDEFGHIJKL"), PioWrite(0, 4, b"ABCDEFGHIJKL")),
    (io(0, 1, 0x64, 1), PioRead(0x64, 1, 1)),
    (io(0, 4, 0x1F0, 128), PioRead(0x1F0, 4, 128)),
    (mmio(0xD000_0000, b"ABCDEFGH", 4, 1), MmioWrite(0xD000_0000, b"ABCD")),
    (mmio(2**64 - 8, b"ABCDEFGH", 8, 1), MmioWrite(2**64 - 8, b"ABCDEFGH")),
    (mmio(0xD000_0070, b"ABCDEFGH", 1, 0), MmioRead(0xD000_0070, 1)),
    (mmio(2**40, bytes(8), 8, 0), MmioRead(2**40, 8)),
    (run_of(5), Halt()),
    (run_of(8), Shutdown()),
    (run_of(10), Interrupted()),
    (run_of(9, struct.pack("<QI", 0x8000_0021, 1)), FailEntry(0x8000_0021)),
    (run_of(24, struct.pack("<II", 1, 0)), SystemEvent("shutdown")),
    (run_of(24, struct.pack("<II", 2, 0)), SystemEvent("reset")),
    (run_of(24, struct.pack("<II", 3, 0)), SystemEvent("crash")),
    (run_of(24, struct.pack("<II", 4, 0)), SystemEvent("4")),
    (
        run_of(17, NOT_EMULATED),
        InternalError(
            1,
            "KVM can't emulate an instruction",
            {"instruction bytes": "f3 0f b8 c0 00 00 00 00 00 00 00 00 00 00 00"},
        ),
    ),
    (error(1), InternalError(1, "KVM can't emulate an instruction")),
    (error(1, 0, 0), InternalError(1, "KVM can't emulate an instruction")),
    (error(2), InternalError(2, "exceptions came at the same time")),
    (
        error(3, 0x80000B0E, 0x31),
        InternalError(3, "delivering an event failed", {"data": "0x80000b0e 0x31"}),
    ),
    (
        error(4, 7),
        InternalError(4, "the hardware exited for an unknown reason", {"data": "0x7"}),
    ),
    (error(99), InternalError(99, "error 99 within KVM")),
    (run_of(0), UnknownExit(0)),
    (run_of(4), UnknownExit(4)),
    (run_of(0xFFFF_FFFF), UnknownExit(0xFFFF_FFFF)),
]


@pytest.mark.parametrize(("run", "expected"), TABLE, ids=[str(exit_)[:40] for _, exit_ in TABLE])
def test_an_exit_says_what_the_kernel_left(run: memoryview, expected: VcpuExit) -> None:
    decoded = decode(run)
    assert decoded == expected
    assert type(decoded) is type(expected)
    if isinstance(expected, InternalError):  # whose details don't count for equality of hashes
        assert isinstance(decoded, InternalError)
        assert decoded.details == expected.details


@pytest.mark.parametrize("reason", [5, 8, 10])
def test_exits_without_data_are_made_once(reason: int) -> None:
    assert decode(run_of(reason)) is decode(run_of(reason))


def test_words_that_are_not_there_are_not_read() -> None:
    run = run_of(17, struct.pack("<II", 3, 0xFFFF_FFFF))
    decoded = decode(run)
    assert isinstance(decoded, InternalError)
    assert len(decoded.details["data"].split()) == 16


def test_an_instruction_is_no_longer_than_its_room() -> None:
    run = run_of(17, struct.pack("<IIQB15s", 1, 4, 1, 255, b"\x90" * 15))
    decoded = decode(run)
    assert isinstance(decoded, InternalError)
    assert decoded.details["instruction bytes"] == " ".join(["90"] * 15)


def test_data_that_was_written_is_a_copy() -> None:
    run = io(1, 1, 0xE9, 1, b"A")
    decoded = decode(run)
    run[DATA_AT] = 0
    assert decoded == PioWrite(0xE9, 1, b"A")


@pytest.mark.parametrize(
    ("run", "length", "at"),
    [(io(0, 2, 0x64, 3), 6, DATA_AT), (mmio(0xD000_0000, bytes(8), 4, 0), 4, 40)],
)
def test_a_read_is_answered_where_the_kernel_looks(run: memoryview, length: int, at: int) -> None:
    answer = bytes(range(1, 1 + length))
    answer_read(run, answer)
    assert run[at : at + length] == answer
    assert run[at + length] == 0


# --- the decoder that remembers ------------------------------------------------------------------


@pytest.fixture
def mapping() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, SIZE) as mapping:
        yield mapping


def test_exits_are_the_same_whether_they_were_seen_before_or_not(mapping: mmap.mmap) -> None:
    decoder = Decoder(mapping)
    for _ in range(3):
        for run, expected in TABLE:
            mapping[:] = bytes(run)
            assert decode(mapping) == expected
            assert decoder.exit() == expected


def test_a_port_write_is_told_by_its_data_which_lies_elsewhere(mapping: mmap.mmap) -> None:
    decoder = Decoder(mapping)
    for value in (*range(300), *range(300)):
        data = value.to_bytes(2, "little")
        mapping[:] = bytes(io(1, 2, 0xE9, 1, data))
        assert decoder.exit() == PioWrite(0xE9, 2, data)


def test_strings_are_told_by_all_of_their_data(mapping: mmap.mmap) -> None:
    decoder = Decoder(mapping)
    for last in b"xyx":
        data = b"abc" + bytes([last])
        mapping[:] = bytes(io(1, 1, 0xE9, 4, data))
        assert decoder.exit() == PioWrite(0xE9, 1, data)


def test_every_bit_that_an_exit_is_made_of_tells_it_from_another(mapping: mmap.mmap) -> None:
    decoder = Decoder(mapping)
    base = bytearray(mmio(0xD000_0000, b"ABCDEFGH", 8, 1))
    for offset in range(8, 53):
        for bit in range(8):
            mapping[:] = bytes(base)
            decoder.exit()
            flipped = bytearray(base)
            flipped[offset] ^= 1 << bit
            mapping[:] = bytes(flipped)
            assert decoder.exit() == decode(mapping)


def test_what_is_remembered_is_bounded_whatever_the_guest_does(mapping: mmap.mmap) -> None:
    decoder = Decoder(mapping)
    for value in range(3 * Decoder.MAX_SEEN):
        mapping[:64] = bytes(mmio(value, bytes(8), 8, 1))[:64]
        assert decoder.exit() == MmioWrite(value, bytes(8))
        mapping[:4100] = bytes(io(1, 4, 0xE9, 1, value.to_bytes(4, "little")))[:4100]
        assert decoder.exit() == PioWrite(0xE9, 4, value.to_bytes(4, "little"))
        assert remembered(decoder) <= Decoder.MAX_SEEN


def test_neither_do_many_ports_with_many_values_each_fill_the_host(mapping: mmap.mmap) -> None:
    decoder = Decoder(mapping)
    for port in range(64):
        for value in range(256):
            mapping[:4100] = bytes(io(1, 1, port, 1, bytes([value])))[:4100]
            assert decoder.exit() == PioWrite(port, 1, bytes([value]))
        assert remembered(decoder) <= Decoder.MAX_SEEN


def remembered(decoder: Decoder) -> int:
    held = decoder._seen.values()
    return len(held) + sum(len(seen.by_data) for seen in held if hasattr(seen, "by_data"))
