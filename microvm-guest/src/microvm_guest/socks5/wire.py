"""SOCKS5's numbers, addresses and datagrams. Pure.

RFC 1928 (SOCKS Protocol Version 5) and RFC 1929 (username and password).
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from typing import Final

import attrs

from microvm.errors import ConfigError

VERSION: Final = 5
AUTH_VERSION: Final = 1
"""Of RFC 1929's negotiation, which counts by itself."""
MAX_NAME: Final = 255
_PORT: Final = struct.Struct(">H")


class Method(enum.IntEnum):
    """How a client may authenticate (RFC 1928, 3)."""

    NO_AUTHENTICATION = 0x00
    GSSAPI = 0x01
    USERNAME_PASSWORD = 0x02
    NO_ACCEPTABLE = 0xFF


class Command(enum.IntEnum):
    """What a client may ask for (RFC 1928, 4)."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class AddressType(enum.IntEnum):
    """How an address is written (RFC 1928, 5)."""

    IPV4 = 1
    DOMAIN_NAME = 3
    IPV6 = 4


class Reply(enum.IntEnum):
    """What a server says of a request (RFC 1928, 6)."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


REPLY_TEXT: Final = {
    Reply.SUCCEEDED: "it worked",
    Reply.GENERAL_FAILURE: "general failure",
    Reply.NOT_ALLOWED: "not allowed",
    Reply.NETWORK_UNREACHABLE: "network unreachable",
    Reply.HOST_UNREACHABLE: "host unreachable, or unknown",
    Reply.CONNECTION_REFUSED: "connection refused",
    Reply.TTL_EXPIRED: "time to live expired",
    Reply.COMMAND_NOT_SUPPORTED: "command not supported",
    Reply.ADDRESS_TYPE_NOT_SUPPORTED: "address type not supported",
}


def _check_host(_: object, __: object, value: str) -> None:
    """A name is ASCII, as it is on the wire; one of another script is said in punycode."""
    if not 0 < len(value) <= MAX_NAME or not all("!" <= char <= "~" for char in value):
        raise ConfigError(
            f"A host is 1 to {MAX_NAME} printable ASCII characters, not {value!r}.",
            remedy="Say a name of another script in punycode: xn--...",
        )


def _check_port(_: object, __: object, value: int) -> None:
    if type(value) is not int or not 0 <= value <= 65535:
        raise ConfigError(f"A port is a number from 0 to 65535, not {value!r}.")


@attrs.frozen
class Destination:
    """A host, by numeric address or by name, and a port."""

    host: str = attrs.field(validator=_check_host)
    port: int = attrs.field(validator=_check_port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


UNSPECIFIED: Final = Destination("0.0.0.0", 0)  # noqa: S104 - nothing is bound
"""What a server that failed says it is bound to."""


@attrs.frozen
class Credentials:
    """A user's name and password, 1 to 255 bytes each in UTF-8 (RFC 1929, 2)."""

    username: str = attrs.field()
    password: str = attrs.field(repr=False)

    @username.validator
    @password.validator
    def _check(self, attribute: attrs.Attribute[str], value: str) -> None:
        if not 0 < len(value.encode()) <= MAX_NAME:
            raise ConfigError(f"A SOCKS5 {attribute.name} has 1 to {MAX_NAME} bytes.")


class BadAddress(ValueError):
    """What stands where an address should is none.

    Args:
        reply: What a server answers.
        why: What is wrong with it.
    """

    def __init__(self, reply: Reply, why: str) -> None:
        super().__init__(why)
        self.reply = reply


def encode_destination(destination: Destination) -> bytes:
    """ATYP, address and port: an IP address if the host is one in full, else a name."""
    port = _PORT.pack(destination.port)
    try:
        address = ipaddress.ip_address(destination.host)
    except ValueError:
        name = destination.host.encode("ascii")
        return bytes((AddressType.DOMAIN_NAME, len(name))) + name + port
    kind = AddressType.IPV4 if address.version == 4 else AddressType.IPV6
    return bytes((kind,)) + address.packed + port


def decode_destination(raw: bytes | bytearray | memoryview) -> tuple[Destination, int] | None:
    """Read ATYP, address and port from the beginning of `raw`.

    Returns:
        The destination and how many bytes it took; None if there are not enough yet.

    Raises:
        BadAddress: its type is unknown, or its name can't be any host's.
    """
    raw = bytes(raw[: 2 + MAX_NAME + _PORT.size])
    if not raw:
        return None
    match raw[0]:
        case AddressType.IPV4:
            begin, length = 1, 4
        case AddressType.IPV6:
            begin, length = 1, 16
        case AddressType.DOMAIN_NAME:
            if len(raw) < 2:
                return None
            begin, length = 2, raw[1]
            if length == 0:
                raise BadAddress(Reply.HOST_UNREACHABLE, "a name of no bytes")
        case kind:
            raise BadAddress(Reply.ADDRESS_TYPE_NOT_SUPPORTED, f"address type {kind}")
    end = begin + length
    if len(raw) < end + _PORT.size:
        return None
    host = raw[begin:end]
    (port,) = _PORT.unpack_from(raw, end)
    if begin == 1:
        text = str(ipaddress.ip_address(host))
    elif all(0x21 <= byte <= 0x7E for byte in host):
        text = host.decode("ascii")
    else:
        raise BadAddress(Reply.HOST_UNREACHABLE, f"the name {host!r}")
    return Destination(text, port), end + _PORT.size


def destination_length(raw: bytes | bytearray) -> int:
    """How many bytes a destination has that begins with `raw`, as far as can be told."""
    if not raw:
        return 1
    lengths: dict[int, int] = {AddressType.IPV4: 1 + 4, AddressType.IPV6: 1 + 16}
    if raw[0] == AddressType.DOMAIN_NAME:
        return 2 if len(raw) < 2 else 2 + raw[1] + _PORT.size
    return lengths[raw[0]] + _PORT.size


# --- datagrams (RFC 1928, 7) -----------------------------------------------------------------


def encode_datagram(destination: Destination, data: bytes) -> bytes:
    """A datagram in its SOCKS5 header."""
    return b"\0\0\0" + encode_destination(destination) + data


def decode_datagram(raw: bytes) -> tuple[Destination, bytes] | None:
    """Where a datagram is to go, or came from, and its data.

    Returns:
        None for one that is to be dropped: not a datagram, or a fragment (RFC 1928, 7: who does
        not support fragmentation must drop them).
    """
    if len(raw) < 4 or raw[2] != 0:
        return None
    try:
        found = decode_destination(raw[3:])
    except BadAddress:
        return None
    if found is None:
        return None
    destination, length = found
    return destination, raw[3 + length :]
