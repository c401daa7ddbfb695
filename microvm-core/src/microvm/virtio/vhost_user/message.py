"""vhost-user messages: numbers, layouts, and a codec without state.

The document is "Vhost-user Protocol" of the QEMU project (docs/interop/vhost-user.rst); section
names below are its own. A message is a header of three u32 (request, flags, payload size) and a
payload; descriptors travel beside it as SCM_RIGHTS. Integers have the host's byte order, which
is little-endian wherever we run (`microvm.memory`).

The front end (the VMM) is trusted with the guest's memory and with nothing else: what it sends
is checked in full, and whatever is not in the document is a `BackendError`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from typing import Final

import attrs

from microvm.errors import BackendError

HEADER: Final = struct.Struct("<III")
VERSION: Final = 1
VERSION_MASK: Final = 0b11
FLAG_REPLY: Final = 1 << 2
FLAG_NEED_REPLY: Final = 1 << 3

MAX_MEMORY_REGIONS: Final = 8
"""As many regions, and descriptors with one message, as a front end sends in SET_MEM_TABLE."""
MAX_CONFIG_BYTES: Final = 256
"""The largest part of a configuration space that one message carries."""

F_PROTOCOL_FEATURES: Final = 1 << 30
"""VHOST_USER_F_PROTOCOL_FEATURES, offered beside the virtio features in GET_FEATURES."""


class Request(enum.IntEnum):
    """Requests of the front end that we serve ("Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25


class BackendRequest(enum.IntEnum):
    """Requests of ours, on the channel of SET_BACKEND_REQ_FD ("Back-end message types")."""

    CONFIG_CHANGE_MSG = 2
    """The configuration space has changed; the front end reads it, and tells the driver."""


class ProtocolFeature(enum.IntFlag):
    """Protocol features that we know ("Protocol features")."""

    MQ = 1 << 0
    """GET_QUEUE_NUM is answered."""
    REPLY_ACK = 1 << 3
    """A request that has no reply of its own is acknowledged if the front end asks for that."""
    BACKEND_REQ = 1 << 5
    """There is a channel for requests of ours."""
    CONFIG = 1 << 9
    """The configuration space is ours to answer for."""


@attrs.frozen(kw_only=True)
class Empty:
    """No payload."""


@attrs.frozen(kw_only=True)
class U64:
    """Features, protocol features or a number of queues."""

    value: int


@attrs.frozen(kw_only=True)
class VringState:
    """A ring and its size, index or switch ("A vring state description")."""

    index: int
    num: int


@attrs.frozen(kw_only=True)
class VringAddresses:
    """A ring's place in the front end's address space ("A vring address description")."""

    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int


@attrs.frozen(kw_only=True)
class VringFd:
    """The payload of KICK, CALL and ERR: a ring, and whether a descriptor comes with it."""

    index: int
    has_fd: bool


@attrs.frozen(kw_only=True)
class ChannelFd:
    """The payload of SET_BACKEND_REQ_FD: nothing but the descriptor beside it."""


@attrs.frozen(kw_only=True)
class MemoryRegion:
    """A run of guest memory in a file ("A memory region description")."""

    guest_address: int
    size: int
    user_address: int
    """Where the front end has it; rings are named by such addresses."""
    mmap_offset: int
    """Where it begins in the file whose descriptor came along."""


@attrs.frozen(kw_only=True)
class MemoryTable:
    """All of guest memory ("Multiple memory regions description")."""

    regions: tuple[MemoryRegion, ...]


@attrs.frozen(kw_only=True)
class ConfigSpace:
    """Bytes of the configuration space ("Virtio device config space").

    `data` is as long as the message says, also when it only asks for that many.
    """

    offset: int
    flags: int
    data: bytes


Payload = (
    Empty | U64 | VringState | VringAddresses | VringFd | ChannelFd | MemoryTable | ConfigSpace
)

_U64 = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_ADDRESSES = struct.Struct("<IIQQQQ")
_TABLE = struct.Struct("<II")
_REGION = struct.Struct("<QQQQ")
_CONFIG = struct.Struct("<III")

MAX_PAYLOAD_BYTES: Final = max(
    _CONFIG.size + MAX_CONFIG_BYTES, _TABLE.size + MAX_MEMORY_REGIONS * _REGION.size
)

_RING_MASK = 0xFF
_NO_FD = 1 << 8


@attrs.frozen(kw_only=True)
class Header:
    """A message's first twelve bytes."""

    request: Request
    need_reply: bool
    size: int
    """Bytes of payload that follow; at most `MAX_PAYLOAD_BYTES`."""


def decode_header(data: bytes) -> Header:
    """Check and unpack the header of a front end's message.

    Raises:
        BackendError: no message of this protocol begins like that, or none that we serve.
    """
    number, flags, size = HEADER.unpack(data)
    if flags & VERSION_MASK != VERSION or flags & FLAG_REPLY:
        raise BackendError(f"A vhost-user message has flags {flags:#x}: not a version 1 request.")
    try:
        request = Request(number)
    except ValueError:
        raise BackendError(
            f"The vhost-user front end sent request {number}, which was not negotiated."
        ) from None
    if size > MAX_PAYLOAD_BYTES:
        raise BackendError(f"{request.name} announces {size} bytes; at most {MAX_PAYLOAD_BYTES}.")
    return Header(request=request, need_reply=bool(flags & FLAG_NEED_REPLY), size=size)


def encode_reply(request: Request, payload: bytes) -> bytes:
    """The reply to `request`, whole."""
    return HEADER.pack(request, VERSION | FLAG_REPLY, len(payload)) + payload


def encode_request(request: Request, payload: bytes, *, need_reply: bool = False) -> bytes:
    """A front end's message, whole: for test doubles."""
    flags = VERSION | (FLAG_NEED_REPLY if need_reply else 0)
    return HEADER.pack(request, flags, len(payload)) + payload


CONFIG_CHANGED: Final = HEADER.pack(BackendRequest.CONFIG_CHANGE_MSG, VERSION, 0)
"""The message that has no payload and wants no reply."""


def decode_payload(request: Request, data: bytes) -> Payload:
    """Check and unpack the payload of `request`.

    Raises:
        BackendError: it is not what the request carries.
    """
    try:
        return _DECODERS[request](data)
    except (struct.error, ValueError) as error:
        raise BackendError(
            f"{request.name} came with a malformed payload of {len(data)} bytes: {error}."
        ) from error


def expected_fds(payload: Payload) -> int:
    """How many descriptors travel with a request of this payload."""
    match payload:
        case MemoryTable():
            return len(payload.regions)
        case VringFd():
            return int(payload.has_fd)
        case ChannelFd():
            return 1
        case _:
            return 0


def encode_payload(payload: Payload) -> bytes:
    """The bytes of a payload."""
    match payload:
        case Empty() | ChannelFd():
            return b""
        case U64():
            return _U64.pack(payload.value)
        case VringState():
            return _STATE.pack(payload.index, payload.num)
        case VringAddresses():
            return _ADDRESSES.pack(*attrs.astuple(payload))
        case VringFd():
            return _U64.pack(payload.index | (0 if payload.has_fd else _NO_FD))
        case MemoryTable():
            regions = b"".join(_REGION.pack(*attrs.astuple(region)) for region in payload.regions)
            return _TABLE.pack(len(payload.regions), 0) + regions
        case ConfigSpace():
            header = _CONFIG.pack(payload.offset, len(payload.data), payload.flags)
            return header + payload.data


def _empty(data: bytes) -> Empty:
    if data:
        raise ValueError("nothing was expected")
    return Empty()


def _channel(data: bytes) -> ChannelFd:
    _empty(data)
    return ChannelFd()


def _u64(data: bytes) -> U64:
    return U64(value=_U64.unpack(data)[0])


def _state(data: bytes) -> VringState:
    index, num = _STATE.unpack(data)
    return VringState(index=index, num=num)


def _addresses(data: bytes) -> VringAddresses:
    index, flags, desc, used, avail, log = _ADDRESSES.unpack(data)
    return VringAddresses(index=index, flags=flags, desc=desc, used=used, avail=avail, log=log)


def _fd(data: bytes) -> VringFd:
    value = _U64.unpack(data)[0]
    if value & ~(_RING_MASK | _NO_FD):
        raise ValueError(f"unknown bits in {value:#x}")
    return VringFd(index=value & _RING_MASK, has_fd=not value & _NO_FD)


def _table(data: bytes) -> MemoryTable:
    count, _ = _TABLE.unpack_from(data)
    if not 0 < count <= MAX_MEMORY_REGIONS:
        raise ValueError(f"{count} regions; 1 to {MAX_MEMORY_REGIONS} were expected")
    # Some front ends send the whole table with the tail unused.
    used = data[_TABLE.size : _TABLE.size + count * _REGION.size]
    if len(used) < count * _REGION.size or (len(data) - _TABLE.size) % _REGION.size:
        raise ValueError(f"{count} regions do not fill it")
    return MemoryTable(
        regions=tuple(
            MemoryRegion(guest_address=guest, size=size, user_address=user, mmap_offset=offset)
            for guest, size, user, offset in _REGION.iter_unpack(used)
        )
    )


def _config(data: bytes) -> ConfigSpace:
    offset, size, flags = _CONFIG.unpack_from(data)
    if size != len(data) - _CONFIG.size or offset + size > MAX_CONFIG_BYTES:
        raise ValueError(f"{size} bytes at {offset} of the configuration space")
    return ConfigSpace(offset=offset, flags=flags, data=data[_CONFIG.size :])


_DECODERS: Mapping[Request, Callable[[bytes], Payload]] = {
    Request.GET_FEATURES: _empty,
    Request.SET_FEATURES: _u64,
    Request.SET_OWNER: _empty,
    Request.RESET_OWNER: _empty,
    Request.SET_MEM_TABLE: _table,
    Request.SET_VRING_NUM: _state,
    Request.SET_VRING_ADDR: _addresses,
    Request.SET_VRING_BASE: _state,
    Request.GET_VRING_BASE: _state,
    Request.SET_VRING_KICK: _fd,
    Request.SET_VRING_CALL: _fd,
    Request.SET_VRING_ERR: _fd,
    Request.GET_PROTOCOL_FEATURES: _empty,
    Request.SET_PROTOCOL_FEATURES: _u64,
    Request.GET_QUEUE_NUM: _empty,
    Request.SET_VRING_ENABLE: _state,
    Request.SET_BACKEND_REQ_FD: _channel,
    Request.GET_CONFIG: _config,
    Request.SET_CONFIG: _config,
}
