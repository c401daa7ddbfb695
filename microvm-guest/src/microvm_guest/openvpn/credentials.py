"""What a user knows and a VPN asks for. Never shown, logged, or written to a file in the guest."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from microvm._secret_lines import lines_of, read_lines
from microvm.errors import ConfigError
from microvm_guest.openvpn.errors import VpnConfigError
from microvm_guest.openvpn.management import quoted


@attrs.frozen(kw_only=True)
class Challenge:
    """A question of the server's, beside the password: for a one-time code, mostly."""

    text: str
    echo: bool
    """Whether the answer may be seen on the screen."""


def _one_line(_: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is None:
        return
    try:
        quoted(value)
    except ValueError as error:
        raise VpnConfigError(f"Credentials.{attribute.name} can't be used: {error}") from None


@attrs.frozen
class Credentials:
    """A user name, a password, a private key's passphrase; whichever the VPN wants."""

    username: str | None = attrs.field(default=None, validator=_one_line)
    password: str | None = attrs.field(default=None, repr=False, validator=_one_line)
    key_passphrase: str | None = attrs.field(
        default=None, repr=False, kw_only=True, validator=_one_line
    )
    answer: Callable[[Challenge], Awaitable[str] | str] | None = attrs.field(
        default=None, repr=False, kw_only=True
    )
    """Called for each question; a one-time code is asked for again when the tunnel reconnects. A
    plain function must not wait, unless it is for `microvm_guest.openvpn.sync`: there it may."""


def parse_auth_file(text: str) -> Credentials:
    """A file for OpenVPN's ``auth-user-pass``: name, password; and for us a key's passphrase.

    The first line may be empty where there is a third: a VPN may want nothing but that.

    Raises:
        VpnConfigError: it has no two lines.
    """
    return _from_lines(lines_of(text))


def _from_lines(lines: list[str]) -> Credentials:
    name, password, passphrase = (*lines, "", "", "")[:3]
    if passphrase and not name:
        return Credentials(password=password or None, key_passphrase=passphrase)
    if not name or len(lines) < 2:
        raise VpnConfigError(
            "A file with credentials has the user name in its first line, the password in its "
            "second.",
            remedy="A private key's passphrase may stand in the third, also with nothing in the "
            "two before it.",
        )
    return Credentials(name, password, key_passphrase=passphrase or None)


def read_auth_file(path: str | os.PathLike[str]) -> Credentials:
    """The credentials in a file.

    Raises:
        VpnConfigError: it can't be read, or has no credentials in it.
    """
    try:
        lines = read_lines(path)
    except ConfigError as error:
        raise VpnConfigError(error.message) from error
    return _from_lines(lines)
