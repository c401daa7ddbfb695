"""Why an attempt failed, read from what OpenVPN logs while it fails. Pure.

The management protocol says that a connection broke, and seldom why: ``tls-error`` is a wrong
certificate, an expired one, or a firewall. The log says which. What is said last is often the least
("TLS handshake failed"), so of all that an attempt's log gives away the most telling counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import reduce
from typing import Final

from microvm_guest.openvpn.states import VpnReason

_R = VpnReason

_SIGNS: Final = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"Cannot open TUN/TAP dev|Cannot ioctl TUNSETIFF|Cannot allocate TUN", _R.TUN_MISSING),
        # a file or a word in the configuration, which OpenSSL's and the server's errors come of
        (r"Cannot load (?:CA certificate|inline certificate|certificate|private key|extra-certs)"
         r"|Error reading (?:extra certificate|(?:inline )?PKCS#12)|[Ii]nsufficient key material"
         r"|Non-Hex.*? key file|Cannot pre-load keyfile|invalid tls-crypt-v2 client key"
         r"|cannot read CRL|Unsupported cipher in|Cipher \S+ not supported"
         r"|Message hash algorithm .* not found|Failed to set (?:restricted|allowed) TLS"
         r"|Invalid cert profile|Options error(?!.*\[PUSH-OPTIONS\])", _R.BAD_CONFIG),
        (r"VERIFY ERROR: depth=\d+, error=certificate has expired", _R.SERVER_CERTIFICATE_EXPIRED),
        (r"VERIFY ERROR: depth=\d+, error=certificate is not yet valid",
         _R.SERVER_CERTIFICATE_REFUSED),
        (r"Your certificate has expired|alert certificate expired", _R.OWN_CERTIFICATE_EXPIRED),
        (r"VERIFY (?:EKU|KU|X509NAME|nsCertType|CERTIFICATE-TYPE|CRL)? ?ERROR|VERIFY ERROR"
         r"|certificate verify failed", _R.SERVER_CERTIFICATE_REFUSED),
        (r"RESOLVE: Cannot resolve host address", _R.NAME_NOT_FOUND),
        (r"TLS key negotiation failed to occur within|Connection refused|Network is unreachable"
         r"|No route to host|Connection timed out|server_poll|recv_socks_reply"
         r"|socks_handshake|SOCKS proxy returned", _R.SERVER_UNREACHABLE),
        (r"TLS Error|TLS_ERROR|OpenSSL: error|tls-crypt unwrap error|Authenticate/Decrypt packet",
         _R.TLS_FAILED),
    )
)  # fmt: skip
"""Most telling first. What the texts are, is OpenVPN's and OpenSSL's; one that changes costs a
reason's exactness, not the state."""

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?:us=\d+ )?")
_OPENSSL: Final = re.compile(r"OpenSSL: error:")
MAX_SAID: Final = 300
"""Characters of the other side's words that a status quotes."""

_RESTARTS: Final = {
    "server_poll": _R.SERVER_UNREACHABLE,
    "init_instance": _R.SERVER_UNREACHABLE,
    "connection-reset": _R.SERVER_UNREACHABLE,
    "network-unreachable": _R.SERVER_UNREACHABLE,
    "socks-error": _R.SERVER_UNREACHABLE,
    "ping-restart": _R.SERVER_UNREACHABLE,
    "ping-exit": _R.SERVER_UNREACHABLE,
    "inactive": _R.IDLE,
    "tls-error": _R.TLS_FAILED,
    "tls_error": _R.TLS_FAILED,
    "auth-failure": _R.AUTH_FAILED,
    "private-key-password-failure": _R.KEY_PASSPHRASE,
    "server-pushed-connection-reset": _R.SERVER_ENDED,
    "server-pushed-halt": _R.SERVER_ENDED,
    "remote-exit": _R.SERVER_ENDED,
    "session-timeout": _R.SERVER_ENDED,
}
"""What stands behind RECONNECTING and EXITING in a state line (OpenVPN's signal_text)."""

_FAREWELL: Final = "exit-with-notification"
"""Stands there in place of the true word, where the daemon has said goodbye to its server first."""
_ENDINGS: Final = {
    "Inactivity timeout (--inactive), exiting": "inactive",
    "Inactivity timeout (--ping-exit), exiting": "ping-exit",
    "Session timeout, exiting": "session-timeout",
}
"""How the log's line ends that is about it -> that word."""

_MORE: Final = {"session-timeout": "It has lasted as long as the server allows."}

REMEDIES: Final = {
    _R.AUTH_FAILED: "Check the user name and the password; the server refused them.",
    _R.REFUSED_FOR_NOW: "It is tried again by itself. If it stays so, ask whoever runs the VPN.",
    _R.CREDENTIALS_MISSING: "Give Credentials(username, password), or --auth-file FILE.",
    _R.KEY_PASSPHRASE: "Give the private key's passphrase: Credentials(key_passphrase=...), or a "
    "third line of the file.",
    _R.CHALLENGE: "Give Credentials(answer=...), which is asked for one-time codes.",
    _R.OWN_CERTIFICATE_EXPIRED: "Ask whoever runs the VPN for a new configuration.",
    _R.SERVER_CERTIFICATE_EXPIRED: "Whoever runs the VPN has to renew it. Is this host's "
    "clock right?",
    _R.SERVER_CERTIFICATE_REFUSED: "It is another server's, or the configuration is out of date: "
    "ask whoever runs the VPN.",
    _R.TLS_FAILED: "The configuration and the server don't fit together: is it the newest?",
    _R.SERVER_UNREACHABLE: "Is the network up, and does it let the VPN's port through? Try the "
    "server's TCP port, if it has one.",
    _R.NAME_NOT_FOUND: "Is the network up? Check the name in the configuration's 'remote' line.",
    _R.NAME_REFUSED: "If that is meant, write the address in place of the name in the "
    "configuration's 'remote' line.",
    _R.BAD_CONFIG: "Correct the configuration.",
    _R.TUN_MISSING: "The guest's kernel needs CONFIG_TUN, and /dev/net/tun.",
    _R.SERVER_ENDED: "The server has ended the session; connect again.",
    _R.IDLE: "Connect again when you need it. After how long it ends is said by 'inactive' in the "
    "configuration, or by the server.",
    _R.DAEMON_DIED: "Connect again; if it dies again, give the machine more memory.",
    _R.PROTOCOL: "The guest's OpenVPN is not one that this microvm knows.",
}

SENTENCES: Final = {
    _R.AUTH_FAILED: "The VPN server refused the user name or the password.",
    _R.REFUSED_FOR_NOW: "The VPN server takes nobody for now.",
    _R.CREDENTIALS_MISSING: "The VPN wants a user name and a password.",
    _R.KEY_PASSPHRASE: "The private key's passphrase is missing or wrong.",
    _R.CHALLENGE: "The VPN server asks a question that nobody answered.",
    _R.OWN_CERTIFICATE_EXPIRED: "The certificate in the configuration has expired.",
    _R.SERVER_CERTIFICATE_EXPIRED: "The VPN server's certificate has expired.",
    _R.SERVER_CERTIFICATE_REFUSED: "The VPN server's certificate is not the one expected.",
    _R.TLS_FAILED: "The VPN server answers, but no secure connection came about.",
    _R.SERVER_UNREACHABLE: "The VPN server does not answer.",
    _R.NAME_NOT_FOUND: "The VPN server's name is not known.",
    _R.NAME_REFUSED: "The VPN server's name leads to where a guest is not let by a name.",
    _R.BAD_CONFIG: "OpenVPN does not accept the configuration.",
    _R.TUN_MISSING: "The guest can't make a tunnel interface.",
    _R.SERVER_ENDED: "The VPN server has ended the session.",
    _R.IDLE: "The VPN was not used for so long that it has ended.",
    _R.DAEMON_DIED: "OpenVPN has died in the guest.",
    _R.PROTOCOL: "OpenVPN in the guest said what it should not.",
}


def cause_in(text: str) -> VpnReason | None:
    """What a line of the log gives away, if it does."""
    return next((reason for sign, reason in _SIGNS if sign.search(text)), None)


def tells_of_config(text: str) -> bool:
    """Whether a line is worth quoting where the configuration is at fault.

    OpenSSL's own errors, which come before OpenVPN's, say what is wrong with a file.
    """
    return cause_in(text) is VpnReason.BAD_CONFIG or _OPENSSL.match(text) is not None


def quoted_of_config(lines: Iterable[str]) -> str:
    """Those of some lines that say what is wrong with the configuration.

    As many of the last as fit, each once, and the last one in any case.
    """
    plain = (_TIME.sub("", line, count=1) for line in lines)
    kept: list[str] = []
    for line in reversed(dict.fromkeys(line for line in plain if tells_of_config(line))):
        if kept and len(" ".join((line, *kept))) > MAX_SAID:
            break
        kept.insert(0, line)
    return " ".join(kept)[:MAX_SAID]


def ending_in(text: str) -> str:
    """The word for how the daemon is going to end, if a line of the log says so."""
    return next((word for end, word in _ENDINGS.items() if text.endswith(end)), "")


def true_word(detail: str, ending: str) -> str:
    """What stands behind EXITING, or would, if the log has said that it ends so."""
    return ending if ending and detail == _FAREWELL else detail


def cause_of_restart(detail: str) -> VpnReason | None:
    """What the word behind RECONNECTING or EXITING means."""
    return _RESTARTS.get(detail.partition(" ")[0])


def more_of_restart(detail: str) -> str:
    """The same word, for a person, where there is more to say than its cause."""
    return _MORE.get(detail, "")


_RANK: Final = {reason: rank for rank, (_, reason) in enumerate(reversed(_SIGNS))}


def most_telling(lines: Iterable[str]) -> VpnReason | None:
    """The cause that some lines give away."""
    return reduce(more_telling, map(cause_in, lines), None)


def more_telling(one: VpnReason | None, other: VpnReason | None) -> VpnReason | None:
    """Which of two causes of the same failure says more."""
    if one is None or other is None:
        return one or other
    return one if _RANK.get(one, 99) >= _RANK.get(other, 99) else other
