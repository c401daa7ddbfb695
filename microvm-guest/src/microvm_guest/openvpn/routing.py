"""The kill switch: what `ip` is told, in batches for its standard input. Pure.

The guest's SOCKS5 server is a user of its own, and for that user there is one table of routes, in
which there is nothing but the tunnel and, behind it, *unreachable*. The rules are there before the
machine is ready and stay until it ends. Nobody has to notice that a tunnel is down for nothing to
leak: without the interface its route is gone, and what is left refuses at once.

Rules, before the kernel's own first (which is for addresses of the guest's):

1. packets from the server's port go by the kernel's table of own addresses: its answers to those
   who speak SOCKS5 to it over loopback (it does so where the guest's vsock can't be listened at);
2. connections of that user's to loopback are refused;
3. all else of that user's goes by the tunnel's table. So the guest's own services, its way out to
   the host among them, can't be had through it either;
4. the kernel's own, moved behind these.
"""

from __future__ import annotations

from typing import Final

from microvm_guest.openvpn.effective import DEVICE
from microvm_guest.socks5.through import SERVER_PORT, SERVER_UID

TABLE: Final = 1080
LAST: Final = 1_000_000
"""The metric of what is behind the tunnel."""
FAMILIES: Final = ("-4", "-6")
_LOOPBACK: Final = {"-4": "127.0.0.0/8", "-6": "::1/128"}
"""Nobody's at the other end: refused here, or whoever asks would wait for an answer. TCP alone:
musl finds out whether there is IPv4 by connecting a datagram socket to 127.0.0.1
(AI_ADDRCONFIG)."""
_WHO: Final = f"uidrange {SERVER_UID}-{SERVER_UID}"


def closing(family: str) -> str:
    """Make the rules, for one family. The tunnel's table has no way in it yet."""
    return _batch(
        f"route add unreachable default metric {LAST} table {TABLE}",
        "rule add pref 30 from all lookup local",
        f"rule add pref 10 {_WHO} ipproto 6 sport {SERVER_PORT} lookup local",
        f"rule add pref 15 {_WHO} ipproto 6 to {_LOOPBACK[family]} unreachable",
        f"rule add pref 20 {_WHO} lookup {TABLE}",
        f"rule add pref 21 {_WHO} unreachable",
        "rule del pref 0",
    )


def opening() -> str:
    """Give the table the tunnel."""
    return _batch(f"route replace default dev {DEVICE} metric 1 table {TABLE}")


def shutting() -> str:
    """Take it away again."""
    return _batch(f"route del default dev {DEVICE} metric 1 table {TABLE}")


def _batch(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)
