"""The first bytes of a forward: the host's request and the agent's reply. Pure.

docs/reference/agent-protocol.md, "Forwards". What follows the reply is the stream itself.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final

from microvm.errors import ConfigError, GuestProtocolError
from microvm.forwards.addresses import TcpAddress, UnixAddress

if TYPE_CHECKING:
    GuestAddress = TcpAddress | UnixAddress

REQUEST: Final = struct.Struct("<BBHHHI")
"""Request, family, address length, port, zero, the host's port; the address follows."""
REPLY: Final = struct.Struct("<II")
"""The guest's errno or 0, and the port that LISTEN chose."""
DATAGRAM: Final = struct.Struct("<H")
"""A datagram's length, before it."""
MAX_ADDRESS: Final = 107
MAX_FORWARDS: Final = 1024
"""How many the agent carries at once."""


class ForwardRequest(enum.IntEnum):
    """What a connection to the forward port may ask for."""

    CONNECT = 1
    LISTEN = 2
    DATAGRAMS = 3


class ForwardFamily(enum.IntEnum):
    """What kind of address it names."""

    TCP = 1
    UNIX = 2


_ERRORS: Final = {
    1: "Operation not permitted",
    2: "No such file or directory",
    13: "Permission denied",
    22: "Invalid argument",
    23: "Too many open files in system",
    24: "Too many open files",
    98: "Address already in use",
    99: "Cannot assign requested address",
    101: "Network is unreachable",
    104: "Connection reset by peer",
    110: "Connection timed out",
    111: "Connection refused",
    113: "No route to host",
}
"""Linux's own numbers (asm-generic/errno.h): the guest's, wherever the host is."""
REFUSED: Final = frozenset({2, 111})
"""Nothing is there: no such socket, or nobody listens on it."""


def encode_connect(address: GuestAddress) -> bytes:
    """Ask to be the stream to an address in the guest."""
    return _encode(ForwardRequest.CONNECT, address, 0)


def encode_listen(address: GuestAddress, host_port: int) -> bytes:
    """Ask to listen there, and to dial `host_port` for each connection that comes."""
    return _encode(ForwardRequest.LISTEN, address, host_port)


def encode_datagrams(address: TcpAddress) -> bytes:
    """Ask to carry the datagrams of the program that sends to that UDP port."""
    return _encode(ForwardRequest.DATAGRAMS, address, 0)


def _encode(request: ForwardRequest, address: GuestAddress, host_port: int) -> bytes:
    if isinstance(address, TcpAddress):
        family, text, port = ForwardFamily.TCP, address.host.encode(), address.port
    else:
        family, text, port = ForwardFamily.UNIX, str(address.path).encode(), 0
    if len(text) > MAX_ADDRESS:
        raise ConfigError(f"A guest's socket has a path of at most {MAX_ADDRESS} bytes.")
    return REQUEST.pack(request, family, len(text), port, 0, host_port) + text


def decode_reply(raw: bytes) -> tuple[int, int]:
    """The guest's errno or 0, and the port.

    Raises:
        GuestProtocolError: no agent says that.
    """
    error, port = REPLY.unpack(raw)
    if error > 4095 or port > 65535 or (error and port):
        raise GuestProtocolError(f"The guest's agent answered a forward with {raw.hex()}.")
    return error, port


def error_text(error: int) -> str:
    """What an errno of the guest's says."""
    return _ERRORS.get(error, f"error {error} of the guest's")
