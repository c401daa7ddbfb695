"""An OpenVPN client's configuration: read, held against the allow-list, files taken in.

    config = read_config("client.ovpn")
    config.remotes, config.wants_password, config.left_out

Files that it names are read on this host, now, and travel inline; the guest has none of them. The
guest's OpenVPN reads what comes of it once more, by itself: so nothing is passed on that it could
read otherwise than we have, such as a long line, a NUL, or what looks like the end of a block. What
is wrong is told all at once, by line and directive; of what stands in the lines only names of files
are told, since the rest may be secret.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from microvm.config import ConfigProblem
from microvm_guest.openvpn import directives, words
from microvm_guest.openvpn.credentials import Credentials, parse_auth_file
from microvm_guest.openvpn.errors import VpnConfigError
from microvm_guest.openvpn.files import MAX_FILE, ReadFile, files_beside

MAX_CONFIG: Final = 1 << 20
MAX_LINE: Final = 254
"""In bytes, of a directive as it stands and as it is written for the guest. OpenVPN's
OPTION_LINE_SIZE is 256, with the line's end: it refuses longer lines, and within a <connection>
cuts them in two."""
MAX_REMOTES: Final = 64
"""OpenVPN's CONNECTION_LIST_SIZE."""
_OPENING: Final = re.compile(r"<([a-z0-9-]+)>")
_PORT: Final = re.compile(r"[0-9]{1,5}")


@attrs.frozen(kw_only=True)
class Remote:
    """A server to be tried."""

    host: str
    port: int
    proto: str


@attrs.frozen(kw_only=True)
class Directive:
    """One line, or one block, of a configuration that is allowed."""

    words: tuple[str, ...]
    inline: str | None = attrs.field(default=None, repr=False)
    """Of a block: its lines."""

    @property
    def name(self) -> str:
        """The directive's own name."""
        return self.words[0]


@attrs.frozen(kw_only=True)
class OpenVpnConfig:
    """A configuration that may be given to the guest's OpenVPN."""

    directives: tuple[Directive, ...] = attrs.field(repr=False)
    remotes: tuple[Remote, ...]
    wants_password: bool
    """Whether a user name and a password are asked for."""
    credentials: Credentials | None = attrs.field(default=None, repr=False)
    """Those that it brings itself, in ``auth-user-pass``."""
    left_out: tuple[str, ...] = ()
    """What was passed over, and why; for a person."""

    @property
    def key_may_be_encrypted(self) -> bool:
        """Whether a passphrase may be asked for. Of PKCS #12 only trying it would tell."""
        return any(
            one.name == "pkcs12" or (one.name == "key" and "ENCRYPTED" in (one.inline or ""))
            for one in self.directives
        )


@attrs.frozen
class _Found:
    line: int
    words: tuple[str, ...]
    inline: str | None = None


def read_config(path: str | os.PathLike[str], *, files_outside: bool = False) -> OpenVpnConfig:
    """A configuration and the files that it names, which stand beside it.

    Args:
        path: The configuration.
        files_outside: Whether it may name any file that its user can read. What is in them goes to
            the guest, or as a password to the server: trust whoever wrote it.

    Raises:
        VpnConfigError: one can't be read, or it may not be used; every problem is listed.
    """
    place = Path(path)
    try:
        with place.open("rb") as file:
            raw = file.read(MAX_CONFIG + 1)
    except OSError as error:
        raise VpnConfigError(f"{place} can't be read: {error.strerror}.") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise VpnConfigError(f"{place} is not a text in UTF-8.") from None
    read_file = files_beside(place.parent, outside=files_outside)
    return parse_config(text, read_file, name=place.name)


def parse_config(text: str, read_file: ReadFile, *, name: str = "config") -> OpenVpnConfig:
    """The same of a text.

    Args:
        text: The configuration.
        read_file: Gives a file that it names; see `files_beside`.
        name: What it is called in messages.

    Raises:
        VpnConfigError: it may not be used; every problem is listed.
    """
    return _Reader(read_file, name).read(text)


class _Reader:
    def __init__(self, read_file: ReadFile, name: str) -> None:
        self._read_file = read_file
        self._name = name
        self._problems: list[ConfigProblem] = []
        self._kept: list[Directive] = []
        self._left_out: list[str] = []
        self._remotes: list[tuple[str, str | None, str | None]] = []
        self._in_blocks: list[tuple[str, str | None, str | None]] = []
        self._defaults = {"port": "1194", "proto": "udp"}
        self._wants_password = False
        self._credentials: Credentials | None = None
        self._ping_exit: _Found | None = None

    def read(self, text: str) -> OpenVpnConfig:
        if len(text) > MAX_CONFIG:
            self._problem(1, f"The configuration has more than {MAX_CONFIG >> 20} MiB.")
        elif any(0xD800 <= ord(character) < 0xE000 for character in text):
            self._problem(1, "The configuration is not a text in UTF-8.")
        else:
            for found in self._lines(text, 1):
                self._take(found)
        remotes = self._checked_remotes()
        self._restart_in_place_of_exit()
        names = {one.name for one in self._kept}
        if not remotes and not self._problems:
            self._problem(1, "There is no server in it: a line 'remote HOST PORT' is missing.")
        if not names & {"ca", "pkcs12", "peer-fingerprint"} and not self._problems:
            self._problem(1, "It does not say how to know the server: 'ca' is missing.")
        own = self._wants_password or names & {"cert", "key", "pkcs12"}
        if not own and not self._problems:
            self._problem(
                1, "It does not say who you are: 'auth-user-pass' is missing, or 'cert' and 'key'."
            )
        if self._problems:
            raise VpnConfigError(
                f"{self._name} can't be used as an OpenVPN configuration:", problems=self._problems
            )
        return OpenVpnConfig(
            directives=tuple(self._kept),
            remotes=remotes,
            wants_password=self._wants_password,
            credentials=self._credentials,
            left_out=tuple(dict.fromkeys(self._left_out)),
        )

    def _problem(self, line: int, message: str, remedy: str | None = None) -> None:
        self._problems.append(ConfigProblem(f"{self._name} line {line}", message, remedy))

    def _lines(self, text: str, first: int) -> Iterator[_Found]:
        lines = iter(enumerate(text.split("\n"), first))
        for number, line in lines:
            opening = _OPENING.fullmatch(line.strip(words.SPACE))
            if opening is None:
                if (found := self._split(number, line)) is not None:
                    yield found
                continue
            tag = opening[1]
            body = self._block(tag, lines)
            if body is None:
                self._problem(number, f"<{tag}> does not end.", f"Add a line </{tag}>.")
                return
            yield _Found(number, (tag,), body)

    def _block(self, tag: str, lines: Iterator[tuple[int, str]]) -> str | None:
        """All up to its end. For OpenVPN that is a line that begins so, whatever follows."""
        body: list[str] = []
        for number, line in lines:
            if "\0" in line:
                self._problem(number, "There is a NUL in it.")
            if f"</{tag}>" in line:
                if line.strip(words.SPACE) != f"</{tag}>":
                    self._problem(number, f"</{tag}> does not stand alone.", "Give it a line.")
                return "".join(body)
            body.append(line.removesuffix("\r") + "\n")
        return None

    def _split(self, number: int, line: str) -> _Found | None:
        if "\0" in line:
            self._problem(number, "There is a NUL in it.")
            return None
        try:
            found = words.split(line)
        except ValueError as error:
            self._problem(number, f"The line can't be read: {error}.")
            return None
        if not found:
            return None
        if len(line.removesuffix("\r").encode()) > MAX_LINE:
            self._problem(number, f"The line has more than {MAX_LINE} bytes.")
            return None
        return _Found(number, (found[0].removeprefix("--"), *found[1:]))

    def _keep(self, line: int, *given: str) -> None:
        if len(words.join(given).encode()) > MAX_LINE:
            self._problem(
                line, f"The line has more than {MAX_LINE} bytes, as it is written for OpenVPN."
            )
        else:
            self._kept.append(Directive(words=given))

    def _take(self, found: _Found, within: bool = False) -> None:
        name, line = found.words[0], found.line
        if name == "setenv" and len(found.words) > 2 and found.words[1] == "opt":
            # "setenv opt X": X, if this OpenVPN knows it.
            if directives.refusal(found.words[2]) is not None:
                self._left_out.append(f"{_shown(found.words[2])}: microvm does not know it")
                return
            self._take(attrs.evolve(found, words=found.words[2:]), within)
            return
        refused = directives.refusal(name)
        if name in directives.INLINE and found.inline is not None:
            refused = None
        elif found.inline is not None and refused is None:
            refused = "It can't be written as a block."
        if refused is not None:
            self._problem(line, f"{_shown(name)!r} is not allowed.", refused)
        elif name in ("dev", "dev-type"):
            self._device(found)
        elif name in directives.LEFT_OUT:
            self._left_out.append(f"{name}: {directives.LEFT_OUT[name]}")
            if name == "ping-exit" and len(found.words) > 1:
                self._ping_exit = found
        elif name == "connection":
            self._connection(found)
        elif name == "auth-user-pass":
            self._auth_user_pass(found)
        elif name == "setenv":
            self._setenv(found)
        elif name in directives.FILES:
            self._file(found)
        else:
            self._plain(found, within)

    def _restart_in_place_of_exit(self) -> None:
        """When a server counts as silent is the user's word; that it then ends is not."""
        names = {one.name for one in self._kept}
        if self._ping_exit is not None and not names & {"ping-restart", "keepalive"}:
            self._keep(self._ping_exit.line, "ping-restart", self._ping_exit.words[1])

    def _device(self, found: _Found) -> None:
        kind = found.words[1] if len(found.words) > 1 else ""
        if found.words[0] == "dev-type" and kind == "tun":
            return
        if found.words[0] == "dev" and not kind.startswith("tap"):
            return
        self._problem(found.line, f"{found.words[0]!r} asks for tap.", directives.NEEDED_TUN)

    def _plain(self, found: _Found, within: bool) -> None:
        name, values = found.words[0], found.words[1:]
        if name == "remote":
            if not values:
                self._problem(found.line, "'remote' names no server.")
                return
            if not values[0].isprintable() or set(values[0]) & set(" ,"):
                self._problem(found.line, "'remote' names what can be no server.")
                return
            port, proto = (*values[1:3], None, None)[:2]
            if within:  # there, OpenVPN has one server, and the last word of each kind counts
                self._defaults.update(port=port or self._defaults["port"])
                self._defaults.update(proto=proto or self._defaults["proto"])
            self._remotes.append((values[0], port, proto))
        elif name in ("port", "rport", "proto") and values:
            self._defaults["proto" if name == "proto" else "port"] = values[0]
        elif name in ("server-poll-timeout", "connect-timeout") and within:
            return
        if found.inline is not None:
            self._kept.append(Directive(words=(name,), inline=found.inline))
        else:
            self._keep(found.line, *found.words)

    def _connection(self, found: _Found) -> None:
        """A block of lines about one server: each is held against the list, and they are kept."""
        assert found.inline is not None
        outside = self._kept, self._remotes, dict(self._defaults)
        self._kept, self._remotes = [], []
        for line in self._lines(found.inline, found.line + 1):
            if line.inline is not None or line.words[0] in (*directives.FILES, "auth-user-pass"):
                self._problem(line.line, f"{_shown(line.words[0])!r} can't stand in <connection>.")
            else:
                self._take(line, within=True)
        inner, found_here, here = self._kept, self._remotes, self._defaults
        self._kept, self._remotes, self._defaults = outside
        if found_here:
            self._in_blocks.append((found_here[-1][0], here["port"], here["proto"]))
        body = "".join(f"{words.join(one.words)}\n" for one in inner)
        self._kept.append(Directive(words=("connection",), inline=body))

    def _auth_user_pass(self, found: _Found) -> None:
        self._wants_password = True
        text = found.inline
        if text is None and len(found.words) > 1:
            raw = self._contents(found.line, "auth-user-pass", found.words[1])
            text = None if raw is None else raw.decode("utf-8", "replace")
        if text is not None:
            try:
                self._credentials = parse_auth_file(text)
            except VpnConfigError as error:
                self._problem(found.line, f"'auth-user-pass': {error.message}", error.remedy)

    def _setenv(self, found: _Found) -> None:
        variable = found.words[1] if len(found.words) > 1 else ""
        if not variable.startswith(directives.SETENV):
            self._problem(
                found.line,
                f"'setenv' of {_shown(variable)!r} is not allowed.",
                f"Only {', '.join(directives.SETENV)} and what begins so may be set.",
            )
            return
        self._keep(found.line, *found.words)

    def _file(self, found: _Found) -> None:
        name = found.words[0]
        if found.inline is not None:
            self._kept.append(Directive(words=(name,), inline=found.inline))
            return
        if len(found.words) < 2:
            self._problem(found.line, f"{name!r} names no file.")
            return
        if name == "crl-verify" and found.words[2:] == ("dir",):
            self._problem(found.line, "'crl-verify' of a directory is not allowed.", "Give a file.")
            return
        raw = self._contents(found.line, name, found.words[1])
        if raw is None:
            return
        if name in directives.BINARY:
            text = base64.encodebytes(raw).decode()
        else:
            text = raw.decode("utf-8", "replace")
        if f"</{name}>" in text or "\0" in text:
            self._problem(found.line, f"The file of {name!r} is not of its kind.")
            return
        body = text if text.endswith("\n") else f"{text}\n"
        self._kept.append(Directive(words=(name,), inline=body))
        if name == "tls-auth" and len(found.words) > 2:
            self._keep(found.line, "key-direction", found.words[2])

    def _contents(self, line: int, name: str, path: str) -> bytes | None:
        if path == "stdin":
            self._problem(line, f"{name!r} can't be read from a terminal here.")
            return None
        shown = path.encode("unicode_escape").decode()
        try:
            raw = self._read_file(path)
        except VpnConfigError as error:
            told = f"The file of {name!r} is not read: {shown}: {error.message}."
            self._problem(line, told, error.remedy)
            return None
        except OSError as error:
            self._problem(line, f"The file of {name!r} can't be read: {shown}: {error.strerror}.")
            return None
        if len(raw) > MAX_FILE:
            self._problem(line, f"The file of {name!r} has more than {MAX_FILE >> 20} MiB.")
            return None
        return raw

    def _checked_remotes(self) -> tuple[Remote, ...]:
        remotes = []
        if self._in_blocks:
            self._left_out += (
                f"remote {host}: OpenVPN goes to the servers in <connection> alone"
                for host, _, _ in self._remotes
            )
        for host, port, proto in self._in_blocks or self._remotes:
            text = self._defaults["port"] if port is None else port
            if not (_PORT.fullmatch(text) and 0 < int(text) < 65536):
                self._problem(1, "The port of a 'remote' is no number from 1 to 65535.")
                continue
            remotes.append(
                Remote(host=host, port=int(text), proto=proto or self._defaults["proto"])
            )
        if len(remotes) > MAX_REMOTES:
            self._problem(1, f"There are more than {MAX_REMOTES} servers in it.")
        return tuple(remotes)


def _shown(name: str) -> str:
    """A directive's name as it may be told: a key's line in a wrong place is none."""
    return name if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", name) else "(not a directive)"
