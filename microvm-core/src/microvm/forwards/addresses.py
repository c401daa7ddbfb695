"""Where a forward begins and where it leads. Pure.

The same three kinds on both sides, of which a host has no vsock: its own AF_VSOCK, where it has
one, leads to whoever hosts the host.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Final, TypedDict

import attrs

from microvm.errors import ConfigError

LOOPBACK: Final = "127.0.0.1"
MAX_UNIX_BYTES: Final = 107
"""unix(7): sun_path, less the NUL."""
MAX_VSOCK_PORT: Final = (1 << 32) - 2
"""vsock(7): the last one is VMADDR_PORT_ANY."""


def _port(_: object, __: object, value: int) -> None:
    if not 0 <= value <= 65535:
        raise ConfigError(f"A TCP port is a number from 0 to 65535, not {value!r}.")


def _numeric(_: object, __: object, value: str) -> None:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ConfigError(
            f"A forward's host is a numeric IP address, not {value!r}.",
            remedy="This machine, and the guest itself, are 127.0.0.1.",
        ) from None
    if "%" in value:
        raise ConfigError(f"A forward's host has no zone: {value!r}.")


@attrs.frozen(kw_only=True)
class TcpAddress:
    """A TCP port at a numeric IP address, the loopback's if not told."""

    port: int = attrs.field(validator=_port)
    """0 to have one chosen, where something is to listen."""
    host: str = attrs.field(default=LOOPBACK, validator=_numeric)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen(kw_only=True)
class UnixAddress:
    """The path of an AF_UNIX socket."""

    path: str = attrs.field(converter=str)

    @path.validator
    def _check(self, _: object, value: str) -> None:
        if not value or "\0" in value:
            raise ConfigError("A socket's path has at least one character, and no NUL.")

    def __str__(self) -> str:
        return self.path


@attrs.frozen(kw_only=True)
class VsockAddress:
    """A vsock port: of the guest's where the host connects, of the host's where the guest does."""

    port: int = attrs.field()

    @port.validator
    def _check(self, _: object, value: int) -> None:
        if not 0 <= value <= MAX_VSOCK_PORT:
            raise ConfigError(f"A vsock port is a number from 0 to {MAX_VSOCK_PORT}.")

    def __str__(self) -> str:
        return f"vsock:{self.port}"


Address = TcpAddress | UnixAddress | VsockAddress


def host_address(
    host: str | None, port: int | None, path: str | Path | None, *, default_port: int | None = None
) -> TcpAddress | UnixAddress:
    """The address on the host that a caller's words describe.

    Args:
        host: As the caller gave it.
        port: As the caller gave it.
        path: As the caller gave it.
        default_port: What a port that was not given is; None where there must be one.

    Raises:
        ConfigError: they describe none, or two.
    """
    if path is not None:
        if host is not None or port is not None:
            raise ConfigError("A forward on the host has a path or a port, not both.")
        return UnixAddress(path=path)
    port = default_port if port is None else port
    if port is None:
        raise ConfigError("Name the host's service: port= or path=.")
    return TcpAddress(host=host or LOOPBACK, port=port)


def guest_address(
    guest_host: str | None,
    guest_port: int | None,
    guest_path: str | None,
    vsock_port: int | None,
) -> Address:
    """The address in the guest that a caller's words describe.

    Raises:
        ConfigError: they describe none, or more than one.
    """
    given = [value for value in (guest_port, guest_path, vsock_port) if value is not None]
    if len(given) != 1 or (guest_host is not None and guest_port is None):
        raise ConfigError(
            "Name one place in the guest: guest_port= (perhaps with guest_host=), guest_path= "
            "or vsock_port=."
        )
    if guest_path is not None:
        path = UnixAddress(path=guest_path)
        if len(path.path.encode()) > MAX_UNIX_BYTES:
            raise ConfigError(f"A guest's socket has a path of at most {MAX_UNIX_BYTES} bytes.")
        return path
    if vsock_port is not None:
        return VsockAddress(port=vsock_port)
    assert guest_port is not None
    return TcpAddress(host=guest_host or LOOPBACK, port=guest_port)


_SIDE: Final = r"(?:vsock:\d+|/[^:]+|(?:(?:\[[0-9A-Fa-f:]+\]|[0-9.]+):)?\d+)"
_FORWARD: Final = re.compile(rf"({_SIDE}):({_SIDE})", re.ASCII)
_TCP: Final = re.compile(r"(?:\[?([0-9A-Fa-f:.]+?)\]?:)?(\d+)", re.ASCII)


class ForwardWords(TypedDict, total=False):
    """The words that `Machine.forward` takes."""

    host: str
    port: int
    path: str
    guest_host: str
    guest_port: int
    guest_path: str
    vsock_port: int


def parse_forward(text: str) -> ForwardWords:
    """What ``HOST:GUEST`` says, for `Machine.forward`.

    Each side is ``PORT``, ``IP:PORT``, ``[IPv6]:PORT`` or ``/PATH``; the guest's also
    ``vsock:PORT``.

    Raises:
        ConfigError: it is something else.
    """
    match = _FORWARD.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"A forward is HOST:GUEST, not {text!r}.",
            remedy="For example 8080:80, 0.0.0.0:8080:80, /tmp/web.sock:80 or 9000:vsock:9000.",
        )
    words = ForwardWords()
    match _parse_side(match[1]):
        case TcpAddress(host=host, port=port):
            words["host"], words["port"] = host, port
        case UnixAddress(path=path):
            words["path"] = path
        case VsockAddress():
            raise ConfigError(f"A forward begins at a port or a path of the host's: {text!r}.")
    match _parse_side(match[2]):
        case TcpAddress(host=host, port=port):
            words["guest_host"], words["guest_port"] = host, port
        case UnixAddress(path=path):
            words["guest_path"] = path
        case VsockAddress(port=port):
            words["vsock_port"] = port
    return words


def _parse_side(text: str) -> Address:
    if text.startswith("/"):
        return UnixAddress(path=text)
    if text.startswith("vsock:"):
        return VsockAddress(port=int(text.removeprefix("vsock:")))
    match = _TCP.fullmatch(text)
    assert match is not None
    host, port = match.groups()
    return TcpAddress(host=host or LOOPBACK, port=int(port))
