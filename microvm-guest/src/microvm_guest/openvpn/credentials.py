"""What a user knows and a VPN asks for. Never shown, logged, or written to a file in the guest."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import attrs

from microvm_guest.openvpn.errors import VpnConfigError
from microvm_guest.openvpn.management import quoted

MAX_FILE: Final = 16 * 1024


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
    answer: Callable[[Challenge], Awaitable[str]] | None = attrs.field(
        default=None, repr=False, kw_only=True
    )
    """Called for each question; a one-time code is asked for again when the tunnel reconnects."""


def parse_auth_file(text: str) -> Credentials:
    """A file for OpenVPN's ``auth-user-pass``: name, password; and for us a key's passphrase.

    Raises:
        VpnConfigError: it has no two lines.
    """
    lines = text.splitlines()
    if len(lines) < 2 or not lines[0]:
        raise VpnConfigError(
            "A file with credentials has the user name in its first line, the password in its "
            "second.",
            remedy="A private key's passphrase may stand in the third.",
        )
    passphrase = lines[2] if len(lines) > 2 and lines[2] else None
    return Credentials(lines[0], lines[1], key_passphrase=passphrase)


def read_auth_file(path: str | os.PathLike[str]) -> Credentials:
    """The credentials in a file.

    Raises:
        VpnConfigError: it can't be read, or has no credentials in it.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_FILE)
        return parse_auth_file(raw.decode())
    except OSError as error:
        raise VpnConfigError(f"{os.fspath(path)} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise VpnConfigError(f"{os.fspath(path)} is not a text in UTF-8.") from None
