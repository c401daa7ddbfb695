"""What the guest's OpenVPN is told: our own lines, then the user's. Pure.

It reads this from its standard input: no file in the guest, nothing on a command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from microvm_guest.openvpn import words

if TYPE_CHECKING:
    from microvm.forwards.addresses import TcpAddress
    from microvm_guest.openvpn.config import OpenVpnConfig

RUN_DIR: Final = "/run/microvm-vpn"
"""In the guest; mode 0700."""
MANAGEMENT: Final = f"{RUN_DIR}/management"
DEVICE: Final = "tun0"

_OWN: Final = (
    f"management {MANAGEMENT} unix",
    "management-client",  # it dials: what listens is ours, and nobody else can speak to it
    "management-hold",
    "management-query-passwords",
    "management-query-remote",
    "management-up-down",
    "script-security 1",  # ip and ifconfig alone
    "dev tun0",
    "dev-type tun",
    "route-noexec",  # routes are the kill switch's: see microvm_guest.openvpn.routing
    "resolv-retry 0",
    "auth-retry interact",
    "persist-key",
    "disable-dco",
    "verb 3",
    'pull-filter ignore "persist-tun"',
    'pull-filter ignore "verb"',
    'pull-filter ignore "mute"',
    'pull-filter ignore "route-delay"',
    'pull-filter ignore "ping-exit"',  # a server that falls silent is connected to anew
    # Debian's 2.6 has no such option; 2.7 would run a script of its own.
    "ignore-unknown-option dns-updown",
    "dns-updown disable",
)
_CONNECT_TIMEOUT_S: Final = 15
"""For a server that says nothing; OpenVPN's own 120 s are more than anybody waits."""


def effective_config(config: OpenVpnConfig, proxy: TcpAddress | None) -> str:
    """The whole text.

    Args:
        config: The user's.
        proxy: Where the host's SOCKS5 proxy is in the guest, if the guest has no other way out.
    """
    lines = list(_OWN)
    names = {one.name for one in config.directives}
    if not names & {"connect-timeout", "server-poll-timeout"}:
        lines.append(f"connect-timeout {_CONNECT_TIMEOUT_S}")
    if not names & {"connect-retry"}:
        lines.append("connect-retry 1 30")
    if "explicit-exit-notify" not in names:
        lines.append("explicit-exit-notify 1")  # by UDP a goodbye has to be said; TCP ignores it
    if not names & {"nobind", "bind", "lport"}:
        lines.append("nobind")
    if config.wants_password:
        lines.append("auth-user-pass")
    if proxy is not None:
        lines.append(f"socks-proxy {proxy.host} {proxy.port}")
    for one in config.directives:
        if one.inline is None:
            lines.append(words.join(one.words))
        else:
            lines.append(f"<{one.name}>\n{one.inline}</{one.name}>")
    return "\n".join((*lines, ""))
