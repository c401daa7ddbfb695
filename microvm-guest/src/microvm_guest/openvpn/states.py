"""What a tunnel does, as a table.

OpenVPN tells where it is in words of its own. They come in any order, many times, and after each
break begin anew; a person wants to know six things. The table says which of the six follows from
where we are and what the daemon has said. Two things are not in its words and are ours: a tunnel
that was up once is *reconnecting* until it is up again, however far the attempt gets; and one that
has failed or ended has done so for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class VpnState(StrEnum):
    """What a tunnel does."""

    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    EXITING = "exiting"
    STOPPED = "stopped"
    """By our own wish, or not started yet."""
    FAILED = "failed"
    """It will not come up by itself; `VpnReason` says why."""


class VpnReason(StrEnum):
    """Why a tunnel has failed, or is not up yet."""

    AUTH_FAILED = "auth_failed"
    REFUSED_FOR_NOW = "refused_for_now"
    CREDENTIALS_MISSING = "credentials_missing"
    KEY_PASSPHRASE = "key_passphrase"  # noqa: S105 - a word, no secret
    CHALLENGE = "challenge"
    OWN_CERTIFICATE_EXPIRED = "own_certificate_expired"
    SERVER_CERTIFICATE_EXPIRED = "server_certificate_expired"
    SERVER_CERTIFICATE_REFUSED = "server_certificate_refused"
    TLS_FAILED = "tls_failed"
    SERVER_UNREACHABLE = "server_unreachable"
    NAME_NOT_FOUND = "name_not_found"
    NAME_REFUSED = "name_refused"
    BAD_CONFIG = "bad_config"
    TUN_MISSING = "tun_missing"
    SERVER_ENDED = "server_ended"
    IDLE = "idle"
    """It was not used for so long that the daemon was told to end it."""
    DAEMON_DIED = "daemon_died"
    PROTOCOL = "protocol"


ENDED: Final = frozenset({VpnState.STOPPED, VpnState.FAILED})

_S = VpnState
_TRYING: Final = ("CONNECTING", "RESOLVE", "TCP_CONNECT", "WAIT")
_ENTERING: Final = ("AUTH", "AUTH_PENDING", "GET_CONFIG", "ASSIGN_IP", "ADD_ROUTES")


def _row(
    trying: VpnState, entering: VpnState, connected: VpnState, broken: VpnState
) -> Mapping[str, VpnState]:
    return {
        **dict.fromkeys(_TRYING, trying),
        **dict.fromkeys(_ENTERING, entering),
        "CONNECTED": connected,
        "RECONNECTING": broken,
        "EXITING": _S.EXITING,
    }


TABLE: Final[Mapping[VpnState, Mapping[str, VpnState]]] = {
    _S.CONNECTING: _row(_S.CONNECTING, _S.AUTHENTICATING, _S.CONNECTED, _S.CONNECTING),
    _S.AUTHENTICATING: _row(_S.CONNECTING, _S.AUTHENTICATING, _S.CONNECTED, _S.CONNECTING),
    _S.CONNECTED: _row(_S.RECONNECTING, _S.RECONNECTING, _S.CONNECTED, _S.RECONNECTING),
    _S.RECONNECTING: _row(_S.RECONNECTING, _S.RECONNECTING, _S.CONNECTED, _S.RECONNECTING),
    _S.EXITING: {},
    _S.STOPPED: {},
    _S.FAILED: {},
}
"""State -> the daemon's word (management-notes.txt, "COMMAND -- state") -> state. What is not in a
row, such as a word of a later OpenVPN's, changes nothing."""


def after(state: VpnState, word: str) -> VpnState:
    """The state that follows."""
    return TABLE[state].get(word, state)
