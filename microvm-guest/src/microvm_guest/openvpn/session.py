"""What one run of the daemon comes to: from its messages, a status and what to answer. Pure.

    for message in parser.feed(data):
        for step in session.take(message, now):
            match step: ...

A step is something for the shell around it to do: bytes to send, a question to put to a person, a
name to resolve, the way to open. The session decides; it never waits.

Long, since each message changes one state: causes, attempts and files are modules of their own.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs

from microvm_guest.openvpn import management as m
from microvm_guest.openvpn.attempts import Attempts
from microvm_guest.openvpn.causes import (
    MAX_SAID,
    REMEDIES,
    SENTENCES,
    cause_in,
    cause_of_restart,
    ending_in,
    more_of_restart,
    more_telling,
    most_telling,
    quoted_of_config,
    tells_of_config,
    true_word,
)
from microvm_guest.openvpn.credentials import Challenge, Credentials
from microvm_guest.openvpn.errors import VpnFailed
from microvm_guest.openvpn.states import ENDED, VpnReason, VpnState, after
from microvm_guest.openvpn.status import VpnStatus

if TYPE_CHECKING:
    from microvm_guest.openvpn.config import Remote

MAX_HOLD_S: Final = 30
MAX_BACKOFF_S: Final = 300
"""The same, of a server that has asked for time."""
RETRY_NAME_S: Final = 5.0
"""From a name that was not found to the next time that it is looked for."""
_PROTO: Final = re.compile(r"(?:udp|tcp)[46]?(?:-client)?")
"""OpenVPN's words for what a client speaks (proto2ascii of its socket.c)."""
MAX_TELLING: Final = 8
"""Lines that are kept of what an attempt says about the configuration."""


@attrs.frozen
class Send:
    """Tell the daemon."""

    data: bytes = attrs.field(repr=False)


@attrs.frozen
class Ask:
    """Put a challenge to the user, and give the answer to `Session.answered`."""

    challenge: Challenge


@attrs.frozen
class Wait:
    """Let this time pass, or be told not to, then send ``hold release``."""

    seconds: int


@attrs.frozen
class FindWay:
    """Answer ``>REMOTE``: resolve it and see that the guest can get there.

    Then say so by `Session.found` or `Session.no_way`.
    """

    host: str
    port: int
    proto: str
    after_s: float = 0.0
    """To be waited first."""


@attrs.frozen
class OpenWay:
    """The tunnel is up: let the SOCKS5 server out, then say so by `Session.way_is_open`."""

    dns: tuple[str, ...]
    ipv6: bool


@attrs.frozen
class ShutWay:
    """The tunnel is down."""


@attrs.frozen
class Tell:
    """The status has changed."""


@attrs.frozen
class Log:
    """For whoever reads the log."""

    flags: str
    text: str


Step = Send | Ask | Wait | FindWay | OpenWay | ShutWay | Tell | Log

_TERMINATE: Final = Send(m.command("signal", "SIGTERM"))


class Session:
    """One run of the daemon.

    Args:
        credentials: What the user knows.
        remotes: The configuration's servers. The daemon is not let to others, whatever it asks
            for; and it has failed to come up when each was tried, at each of its addresses.
        dns: Name servers of the user's choice, in place of those that the VPN pushes.
    """

    def __init__(
        self, credentials: Credentials, remotes: Sequence[Remote], dns: tuple[str, ...] = ()
    ) -> None:
        self.status = VpnStatus(state=VpnState.CONNECTING)
        self._credentials = credentials
        self._servers = frozenset((one.host, one.port) for one in remotes)
        self._own_dns = dns
        self._attempts = Attempts(len(remotes))
        self._finding: FindWay | None = None
        """What the daemon has asked for last."""
        self._cause: VpnReason | None = None
        self._standing: VpnReason | None = None
        """What is so whatever the attempt: our own certificate's end."""
        self._said = ""
        self._wrong: deque[str] = deque(maxlen=MAX_TELLING)
        """What this attempt has said about the configuration."""
        self._ending = ""
        """How the daemon has said that it is going to end."""
        self._gave_passphrase = False
        self._token = False
        """Whether the daemon logs in by a token of the server's, and not by the password."""
        self._excused = False
        """Whether this attempt's end is nobody's failure, and the next may well be better."""
        self._waiting: m.NeedPassword | None = None
        self._dynamic: m.DynamicChallenge | None = None
        self._asking: Challenge | None = None
        self._pushed_dns: tuple[str, ...] = ()
        self._up = False

    @property
    def is_waited_for(self) -> bool:
        """Whether the daemon has asked us something. Then it must not be told to restart.

        With 2.6.14 it ends at any signal: "could not read Auth username/password" is fatal, and
        what comes while it asks for the way becomes a SIGHUP, at which it reads its configuration
        again, from a standard input that is empty by now.
        """
        return self._finding is not None or self._asking is not None

    # --- what the daemon says -------------------------------------------------------------

    def begin(self) -> list[Step]:
        """What to say first."""
        words = (("log", "on"), ("state", "on"), ("bytecount", "2"))
        return [Send(m.command(*one)) for one in words]

    def take(self, message: m.Message, now: float) -> list[Step]:
        """What follows from a message, at this time (seconds since 1970)."""
        if self.status.state in ENDED:
            return []
        match message:
            case m.StateLine():
                return self._state(message, now)
            case m.Hold(wait_s=seconds):
                return [Wait(self._pause(seconds))]
            case m.Remote(host=host, port=port, proto=proto):
                return self._remote(host, port, proto, now)
            case m.NeedPassword():
                return self._need(message, now)
            case m.AuthToken():
                self._token = True
            case m.VerificationFailed():
                return self._refused(message, now)
            case m.LogText(flags=flags, text=text):
                return self._log(flags, text)
            case m.ByteCount(received=received, sent=sent):
                self.status = attrs.evolve(self.status, received_bytes=received, sent_bytes=sent)
            case m.UpDown(up=up, env=env):
                self._pushed_dns = pushed_dns(env) if up else ()
            case m.Fatal(text=text):
                self._cause = more_telling(self._cause, cause_in(text))
                self._said = text
                self._keep_if_telling(text)
            case m.InfoText(text=text) if text.startswith(("WEB_AUTH:", "OPEN_URL:", "CR_TEXT:")):
                said = "The server wants a login in a browser, which is not supported."
                return self._fail(VpnReason.CHALLENGE, said, now)
            case m.NeedOk():
                return self._fail(VpnReason.BAD_CONFIG, message.text, now)
            case _:
                pass
        return []

    def _pause(self, seconds: int) -> int:
        if self._cause is VpnReason.REFUSED_FOR_NOW:
            return min(seconds, MAX_BACKOFF_S)
        attempted = self._attempts.failed > 0 or self.status.connects > 0
        return min(seconds, MAX_HOLD_S) if attempted else 0

    def _state(self, line: m.StateLine, now: float) -> list[Step]:
        was, state = self.status.state, after(self.status.state, line.name)
        steps: list[Step] = []
        excused = False
        if line.name in ("RECONNECTING", "EXITING"):
            excused, self._excused = self._excused, False
            if not excused:
                word = true_word(line.detail, self._ending)
                self._cause = more_telling(self._cause, self._cause_of_restart(word))
                self._said = more_of_restart(word) or self._said
        down = line.name in ("RECONNECTING", "EXITING") or state is VpnState.RECONNECTING
        if down and line.name != "CONNECTED" and (self._up or was is VpnState.CONNECTED):
            self._up = False
            steps.append(ShutWay())
        told_to = line.detail.startswith("SIGUSR1") or self._dynamic is not None or excused
        if line.name == "RECONNECTING" and was is not VpnState.CONNECTED and not told_to:
            self._attempts.failed += 1
            if not self.status.connects and self._attempts.are_over:
                reason = self._why() or VpnReason.SERVER_UNREACHABLE
                said = quoted_of_config(self._wrong) if reason is VpnReason.BAD_CONFIG else ""
                return [*steps, *self._fail(reason, said, now)]
        if line.name == "CONNECTED":
            self._up = True
            self._attempts.failed = 0
            self._cause = None
            self._said = ""
            self._wrong.clear()
            self._ending = ""
            local_ip6 = line.local_ip6 or None
            self.status = attrs.evolve(
                self.status,
                local_ip=line.local_ip or None,
                local_ip6=local_ip6,
                dns=self._own_dns or self._pushed_dns,
            )
            return [OpenWay(self.status.dns, local_ip6 is not None)]
        if state is not was or line.name == "RECONNECTING":
            why = self._why() if state is VpnState.RECONNECTING or excused else None
            said = f" {self._said}" if excused and why and self._said else ""
            self._enter(state, why, SENTENCES[why] + said if why else "", now)
            steps.append(Tell())
        return steps

    def way_is_open(self, now: float) -> list[Step]:
        """`OpenWay` has been done."""
        if not self._up or self.status.state in (*ENDED, VpnState.EXITING):
            return [ShutWay()]
        self.status = attrs.evolve(self.status, connects=self.status.connects + 1)
        self._enter(VpnState.CONNECTED, None, "", now)
        return [Tell()]

    def way_failed(self, error: str, now: float) -> list[Step]:
        """`OpenWay` could not be done, and nobody has said since that the tunnel is down."""
        if not self._up or self.status.state in ENDED:
            return []
        if not self.status.connects:
            return self.broke(error, now)
        return [Send(m.command("signal", "SIGUSR1"))]  # once more from the beginning

    def _enter(self, state: VpnState, reason: VpnReason | None, detail: str, now: float) -> None:
        since = now if state is not self.status.state else self.status.since
        status = attrs.evolve(self.status, state=state, reason=reason, detail=detail, since=since)
        if state is not VpnState.CONNECTED:
            status = attrs.evolve(status, local_ip=None, local_ip6=None, dns=())
        self.status = status

    def _why(self) -> VpnReason | None:
        return more_telling(self._standing, self._cause) if self._cause else self._standing

    def _log(self, flags: str, text: str) -> list[Step]:
        if "Your certificate has expired" in text:
            self._standing = VpnReason.OWN_CERTIFICATE_EXPIRED
        else:
            self._cause = more_telling(self._cause, cause_in(text))
        self._keep_if_telling(text)
        self._ending = ending_in(text) or self._ending
        if "auth-token" in text or m.CHALLENGE in text or text.startswith("MANAGEMENT:"):
            return []  # the first two may have a secret in them, the third is what we have said
        return [Log(flags, text)]

    def _keep_if_telling(self, text: str) -> None:
        if tells_of_config(text):
            self._wrong.append(text)

    def _cause_of_restart(self, detail: str) -> VpnReason | None:
        """OpenVPN says of every key that it can't read that its passphrase were wrong."""
        cause = cause_of_restart(detail)
        if cause is VpnReason.KEY_PASSPHRASE and not self._gave_passphrase:
            return VpnReason.BAD_CONFIG
        return cause

    def _remote(self, host: str, port: int, proto: str, now: float) -> list[Step]:
        if (host, port) not in self._servers:
            asked = f"It asks for {host}:{port}, which the configuration does not name."
            return self.broke(asked, now)
        if not _PROTO.fullmatch(proto):
            return self.broke(f"It asks for a protocol that is none: {proto!r}.", now)
        if self.status.state is not VpnState.CONNECTED:
            self._cause = None
            self._said = ""
            self._wrong.clear()
        self.status = attrs.evolve(self.status, server=f"{host}:{port}")
        self._finding = FindWay(host, port, proto)
        return [self._finding, Tell()]

    def found(self, way: FindWay, address: str, untried: int) -> list[Step]:
        """`FindWay` has led to this address; so many others of the name's had no turn yet."""
        if self.status.state in ENDED:
            return []
        self._attempts.found((way.host, way.port, way.proto), untried)
        self._finding = None
        return [Send(m.command("remote", "MOD", address, str(way.port)))]

    # --- secrets --------------------------------------------------------------------------

    def _need(self, need: m.NeedPassword, now: float) -> list[Step]:
        known = self._credentials
        if need.realm == "Private Key":
            if known.key_passphrase is None:
                return self._fail(VpnReason.KEY_PASSPHRASE, "", now)
            self._gave_passphrase = True
            return [Send(m.password(need.realm, known.key_passphrase))]
        if need.realm != "Auth":
            return self._fail(VpnReason.CREDENTIALS_MISSING, f"It asks for {need.realm!r}.", now)
        if known.username is None or known.password is None:
            return self._fail(VpnReason.CREDENTIALS_MISSING, "", now)
        dynamic = self._dynamic
        if dynamic is not None and not dynamic.wants_answer:
            self._dynamic = None
            return self._credentials_of(now, m.dynamic_response(dynamic, ""), dynamic.username)
        text = dynamic.text if dynamic is not None else need.challenge
        if text is None:
            return self._credentials_of(now, known.password)
        if known.answer is None:
            return self._fail(VpnReason.CHALLENGE, f"It asks: {text[:MAX_SAID]}", now)
        self._waiting = need
        echo = dynamic.echo if dynamic is not None else need.echo
        self._asking = Challenge(text=text, echo=echo)
        return [Ask(self._asking)]

    def answered(self, challenge: Challenge, answer: str, now: float) -> list[Step]:
        """The user has answered; too late, if the daemon asks something else by now."""
        if challenge is not self._asking:
            return []
        self._asking = None
        dynamic, self._dynamic = self._dynamic, None
        if dynamic is not None:
            return self._credentials_of(now, m.dynamic_response(dynamic, answer), dynamic.username)
        assert self._credentials.password is not None
        return self._credentials_of(now, m.static_response(self._credentials.password, answer))

    def _credentials_of(self, now: float, secret: str, name: str | None = None) -> list[Step]:
        name = name or self._credentials.username
        assert name is not None
        try:
            return [Send(m.username("Auth", name)), Send(m.password("Auth", secret))]
        except ValueError as error:  # a challenge's name or a person's answer, of any length
            return self._fail(VpnReason.CHALLENGE, f"The answer can't be sent: {error}", now)

    def _refused(self, failed: m.VerificationFailed, now: float) -> list[Step]:
        """Name and password are wrong, unless it is something less that was refused.

        OpenVPN says this of every AUTH_FAILED, and in two cases tries again by itself: when the
        server says TEMP, and when it was a token that the server does not know any more, because
        that has grown old or the server was restarted (receive_auth_failed of its push.c).
        """
        for_now = failed.realm == "Auth" and failed.said.startswith("TEMP")
        had_token = self._token
        if failed.realm == "Auth" and not for_now:
            self._token = False  # the daemon has thrown it away, whatever else was said
        if failed.challenge is not None:
            self._dynamic = failed.challenge
            if self._credentials.answer is None and failed.challenge.wants_answer:
                asked = f"It asks: {failed.challenge.text[:MAX_SAID]}"
                return self._fail(VpnReason.CHALLENGE, asked, now)
            return []
        if failed.realm == "Private Key":
            return self._fail(VpnReason.KEY_PASSPHRASE, "", now)
        if for_now or had_token:
            self._excused = True
            self._cause = VpnReason.REFUSED_FOR_NOW if for_now else None
            # "TEMP[backoff 60,advance no]: in words", each of the two parts optional
            self._said = failed.said.partition(":")[2].strip()[:MAX_SAID] if for_now else ""
            return []
        return self._fail(VpnReason.AUTH_FAILED, failed.said, now)

    # --- ends -----------------------------------------------------------------------------

    def _fail(self, reason: VpnReason, said: str, now: float) -> list[Step]:
        text = SENTENCES[reason] + (f" {said[:MAX_SAID]}" if said else "")
        was_up, self._up = self._up, False
        self._enter(VpnState.FAILED, reason, text, now)
        steps: list[Step] = [ShutWay()] if was_up else []
        return [*steps, _TERMINATE, Tell()]

    def no_way(self, reason: VpnReason, said: str, now: float) -> list[Step]:
        """`FindWay` has found none: one more attempt that failed."""
        if self.status.state in ENDED or self._finding is None:
            return []
        way = self._finding
        self._attempts.not_found((way.host, way.port, way.proto))
        if not self.status.connects and self._attempts.are_over:
            return self._fail(reason, said, now)
        self._cause = reason
        self._enter(self.status.state, reason, f"{SENTENCES[reason]} {said}".rstrip(), now)
        if self._attempts.may_pass_over():
            self._finding = None
            return [Send(m.command("remote", "SKIP")), Tell()]
        return [attrs.evolve(way, after_s=RETRY_NAME_S), Tell()]

    def broke(self, error: str, now: float) -> list[Step]:
        """What it said can't be understood, or the guest can't do what is needed."""
        return self._fail(VpnReason.PROTOCOL, error, now)

    def lost(self, error: str, now: float) -> list[Step]:
        """The guest, or the way to it, is gone."""
        if self.status.state in ENDED:
            return []
        return self._fail(VpnReason.DAEMON_DIED, error, now)

    def ended(self, printed: Sequence[str], now: float, *, asked: bool) -> list[Step]:
        """The daemon is gone.

        Args:
            printed: The last lines that it has printed.
            now: Seconds since 1970.
            asked: Whether it was told to end.
        """
        if self.status.state in ENDED:
            return []
        was_up, self._up = self._up, False
        if asked:
            self._enter(VpnState.STOPPED, None, "", now)
        else:
            reason = self._why() or most_telling(printed) or VpnReason.DAEMON_DIED
            if self.status.state is VpnState.CONNECTED:
                reason = VpnReason.DAEMON_DIED
            said = self._said
            if reason is VpnReason.BAD_CONFIG:
                said = quoted_of_config(self._wrong or printed) or said
            text = SENTENCES[reason] + (f" {said[:MAX_SAID]}" if said else "")
            self._enter(VpnState.FAILED, reason, text, now)
        return [*([ShutWay()] if was_up else []), Tell()]

    def error(self) -> VpnFailed:
        """The failure, to be raised."""
        reason = self.status.reason or VpnReason.DAEMON_DIED
        return VpnFailed(self.status.detail, reason=reason, remedy=REMEDIES[reason])


def pushed_dns(env: object) -> tuple[str, ...]:
    """Name servers among what the server has pushed: ``dhcp-option DNS`` and 2.6's ``dns``."""
    assert isinstance(env, dict)
    found: dict[str, None] = {}
    for name in sorted(env):
        words = env[name].split()
        if name.startswith("foreign_option_") and words[:2] in (
            ["dhcp-option", "DNS"],
            ["dhcp-option", "DNS6"],
        ):
            found.update(dict.fromkeys(words[2:3]))
        elif name.startswith("dns_server_") and "_address" in name:
            found[env[name].strip("[]")] = None
    return tuple(found)
