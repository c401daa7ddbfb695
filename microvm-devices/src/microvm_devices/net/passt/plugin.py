"""The ``passt`` net backend plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from microvm.errors import ConfigError
from microvm.plugins import NetBackendFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import NetBackend

LISTS: Final = {"dns": "dns", "tcp": "tcp_ports", "udp": "udp_ports"}
"""Words of ``--net passt:`` that may come several times, and the options that they are."""


def create(options: Mapping[str, Any]) -> NetBackend:
    """A `PasstBackend` with the options of `PasstOptions`.

    Raises:
        ConfigError: an option is unknown, its value can't be used, or there is no passt.
    """
    from microvm_devices.net.passt.backend import PasstBackend
    from microvm_devices.net.passt.options import find_passt, read_options

    return PasstBackend(read_options(options), find_passt())


def parse_cli(text: str) -> Mapping[str, Any]:
    """Words between commas: ``dns=ADDRESS``, ``tcp=PORT``, ``udp=PORT``, ``host``.

    Raises:
        ConfigError: a word is none of these.
    """
    lists: dict[str, list[str]] = {}
    options: dict[str, Any] = {}
    for word in text.split(",") if text else ():
        name, equals, value = word.partition("=")
        if name in LISTS and value:
            lists.setdefault(LISTS[name], []).append(value)
        elif name == "host" and not equals:
            options["host_access"] = True
        else:
            raise ConfigError(f"{word!r} means nothing there.")
    return {**lists, **options}


@hookimpl
def microvm_register_net_backend() -> NetBackendFactory:
    """Offer the backend."""
    return NetBackendFactory(
        name="passt",
        summary="the host's own network, with no privileges and no set-up",
        create=create,
        syntax="passt[:dns=ADDRESS,tcp=PORT[:GUESTPORT],udp=...,host]",
        parse_cli=parse_cli,
    )
