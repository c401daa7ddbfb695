"""The ``socket`` net backend plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.errors import ConfigError
from microvm.plugins import NetBackendFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import NetBackend

DATAGRAM: str = "dgram:"


def create(options: Mapping[str, Any]) -> NetBackend:
    """A `SocketBackend` with the options of `SocketOptions`.

    Raises:
        ConfigError: an option is unknown, or its value can't be used.
    """
    from microvm_devices.net.socket.backend import SocketBackend, read_options

    return SocketBackend(read_options(options))


def parse_cli(text: str) -> Mapping[str, Any]:
    """A path, ``dgram:`` in front of it for a datagram socket.

    Raises:
        ConfigError: there is none.
    """
    path = text.removeprefix(DATAGRAM)
    if not path:
        raise ConfigError("Which socket? --net socket:PATH, or --net socket:dgram:PATH")
    return {"path": path, "type": "dgram" if text.startswith(DATAGRAM) else "stream"}


@hookimpl
def microvm_register_net_backend() -> NetBackendFactory:
    """Offer the backend."""
    return NetBackendFactory(
        name="socket",
        summary="a program at an AF_UNIX socket, in QEMU's framing (gvproxy, socket_vmnet)",
        create=create,
        syntax="socket:[dgram:]PATH",
        parse_cli=parse_cli,
    )
