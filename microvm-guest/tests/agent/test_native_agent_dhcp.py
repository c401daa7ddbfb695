"""The agent's DHCP messages, by RFC 2131 and 2132: written, read, and any bytes survived.

The network that an answer comes from is not trusted: every length in it may lie.
"""

import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm_guest.agent import SOURCE_DIR, WARNINGS

XID = 0x12345678
MAC = bytes.fromhex("020000000001")
OFFER, ACK, NAK = 2, 5, 6
COOKIE = bytes([99, 130, 83, 99])

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("dhcp") / "dhcp_messages"
    sources = [Path(__file__).parent / "dhcp_messages.c", SOURCE_DIR / "dhcp.c"]
    sanitizers = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = ["-I", str(SOURCE_DIR)]
    subprocess.run(["gcc", *WARNINGS, *sanitizers, *include, "-o", binary, *sources], check=True)
    return binary


def written(program: Path, kind: str) -> bytes:
    words = [program, "write", str(XID), kind]
    return subprocess.run(words, check=True, capture_output=True).stdout


def read(program: Path, packets: Iterable[bytes]) -> list[list[str]]:
    stdin = b"".join(struct.pack(">H", len(packet)) + packet for packet in packets)
    done = subprocess.run(
        [program, "read", str(XID)], input=stdin, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return [line.split() for line in done.stdout.decode().splitlines()]


def option(code: int, value: bytes) -> bytes:
    return bytes([code, len(value)]) + value


def addresses(*texts: str) -> bytes:
    return b"".join(map(socket.inet_aton, texts))


FULL = (
    option(1, addresses("255.255.255.0"))
    + option(3, addresses("10.0.0.1", "10.0.0.254"))
    + option(6, addresses("10.0.0.53", "10.0.1.53", "10.0.2.53", "10.0.3.53"))
    + option(51, struct.pack(">I", 3600))
    + option(54, addresses("10.0.0.1"))
)


def answer(
    type_: int = OFFER,
    options: bytes = FULL,
    *,
    xid: int = XID,
    mac: bytes = MAC,
    address: str = "10.0.0.2",
    ports: tuple[int, int] = (67, 68),
    end: bytes = b"\xff",
) -> bytes:
    """An IP packet that a server sends."""
    message = struct.pack("<BBBBIHH", 2, 1, 6, 0, xid, 0, 0)
    message += addresses("0.0.0.0", address, "0.0.0.0", "0.0.0.0")
    message += mac.ljust(16, b"\0") + bytes(192) + COOKIE
    message += option(53, bytes([type_])) + options + end
    udp = struct.pack(">HHHH", *ports, 8 + len(message), 0) + message
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    return ip + addresses("10.0.0.1", "255.255.255.255") + udp


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def options_of(packet: bytes) -> dict[int, bytes]:
    found, at = {}, 28 + 240
    while packet[at] != 255:
        found[packet[at]] = packet[at + 2 : at + 2 + packet[at + 1]]
        at += 2 + packet[at + 1]
    return found


@pytest.mark.parametrize("kind", ["discover", "request", "renewal"])
def test_what_is_written_is_a_packet_to_everybody(program: Path, kind: str) -> None:
    packet = written(program, kind)
    assert packet[0] == 0x45
    assert struct.unpack_from(">H", packet, 2) == (len(packet),)
    assert checksum(packet[:20]) == 0
    assert packet[16:20] == b"\xff" * 4
    assert struct.unpack_from(">HHH", packet, 20) == (68, 67, len(packet) - 20)
    message = packet[28:]
    assert len(message) >= 300
    assert message[:3] == b"\1\1\6"
    assert struct.unpack_from("<I", message, 4) == (XID,)
    assert message[10] & 0x80
    assert message[28:34] == MAC
    assert message[236:240] == COOKIE
    options = options_of(packet)
    assert set(options[55]) == {1, 3, 6}
    assert options[53] == (b"\1" if kind == "discover" else b"\3")
    # RFC 2131, 4.3.2: a renewal names the address in ciaddr, a request in an option.
    assert message[12:16] == addresses("10.0.0.2" if kind == "renewal" else "0.0.0.0")
    asked = {50: addresses("10.0.0.2"), 54: addresses("10.0.0.1")}
    assert {k: v for k, v in options.items() if k in asked} == (asked if kind == "request" else {})


@pytest.mark.parametrize("type_", [OFFER, ACK])
def test_a_servers_answer_is_read(program: Path, type_: int) -> None:
    (line,) = read(program, [answer(type_)])
    assert line == [
        str(type_),
        *("10.0.0.2", "255.255.255.0", "10.0.0.1", "10.0.0.1", "3600"),
        *("10.0.0.53", "10.0.1.53", "10.0.2.53"),
    ]


def test_a_lease_without_a_time_is_for_ever_and_a_refusal_needs_no_address(program: Path) -> None:
    bare, refusal = read(program, [answer(ACK, b""), answer(NAK, b"", address="0.0.0.0")])
    assert bare[:6] == [str(ACK), "10.0.0.2", "0.0.0.0", "0.0.0.0", "0.0.0.0", str(0xFFFFFFFF)]
    assert refusal[0] == str(NAK)


@pytest.mark.parametrize(
    "packet",
    [
        answer(xid=XID + 1),
        answer(mac=MAC[:5] + b"\2"),
        answer(address="0.0.0.0"),
        answer(ports=(68, 67)),
        answer(ports=(53, 68)),
        answer(1),
        answer(4),
        answer(OFFER, option(53, b"")[:1]),
        answer(OFFER, b"\x06\xff"),
        # Not a byte behind it is the packet's.
        answer(OFFER, FULL + b"\x06", end=b""),
        answer(OFFER, FULL + b"\x06\x05" + bytes(4), end=b""),
        b"\x65" + answer()[1:],
        b"\x44" + answer()[1:],
        b"\x4f" + answer()[1:],
        answer()[:6] + b"\x20\0" + answer()[8:],
        answer()[:9] + b"\x06" + answer()[10:],
        b"",
    ],
)
def test_what_is_no_answer_to_us_is_none(program: Path, packet: bytes) -> None:
    assert [line[0] for line in read(program, [packet])] == ["0"]


def test_an_answer_that_ends_anywhere_is_none(program: Path) -> None:
    whole = answer()
    lines = read(program, [whole[:end] for end in range(len(whole))])
    assert {line[0] for line in lines} == {"0"}


def test_bytes_behind_an_answer_do_no_harm(program: Path) -> None:
    assert read(program, [answer() + bytes(46)]) == read(program, [answer()])


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 330), st.integers(0, 255)), max_size=8),
            st.integers(0, 330),
            st.binary(max_size=60),
        ),
        min_size=50,
        max_size=50,
    )
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_read_within_their_bounds(
    program: Path, cases: list[tuple[list[tuple[int, int]], int, bytes]]
) -> None:
    """The sanitizers would end the program."""
    packets = []
    for changes, end, options in cases:
        packet = bytearray(answer(OFFER, options))
        for at, value in changes:
            packet[at % len(packet)] = value
        packets.append(bytes(packet[: end or None]))
    assert len(read(program, packets)) == len(packets)
