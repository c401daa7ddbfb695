"""Which of OpenVPN's directives a configuration may have, and what becomes of each.

An allow-list: a directive that is not here is refused, whatever later versions of OpenVPN make of
it. Nothing that runs a program, loads a library, opens a file of the guest's or speaks to the
daemon from elsewhere is on it. See openvpn(8), 2.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PASSED: Final = frozenset(
    {
        # who to connect to, and how
        "client", "tls-client", "pull", "remote", "port", "rport", "proto", "float",
        "remote-random", "explicit-exit-notify", "connect-retry", "connect-timeout",
        "server-poll-timeout", "keepalive", "ping", "ping-restart", "ping-timer-rem",
        "hand-window", "tran-window", "tls-timeout", "reneg-sec", "reneg-bytes", "reneg-pkts",
        "proto-force", "push-peer-info", "setenv-safe", "compat-mode",
        # how it is secured
        "cipher", "data-ciphers", "data-ciphers-fallback", "ncp-ciphers", "ncp-disable", "auth",
        "tls-cipher", "tls-ciphersuites", "tls-groups", "ecdh-curve", "tls-version-min",
        "tls-version-max", "tls-cert-profile", "key-direction", "remote-cert-tls",
        "remote-cert-ku", "remote-cert-eku", "ns-cert-type", "verify-x509-name", "verify-hash",
        "peer-fingerprint", "replay-window", "mute-replay-warnings", "auth-nocache",
        "static-challenge", "allow-pull-fqdn", "disable-occ", "opt-verify",
        # what is carried
        "comp-lzo", "compress", "allow-compression", "comp-noadapt", "fragment", "mssfix",
        "tun-mtu", "tun-mtu-extra", "tun-mtu-max", "link-mtu", "mtu-disc", "mtu-test", "sndbuf",
        "rcvbuf", "txqueuelen", "shaper", "topology", "ifconfig", "ifconfig-ipv6", "pull-filter",
        "dhcp-option", "ignore-unknown-option", "bind", "lport", "nobind", "inactive",
    }
)  # fmt: skip
"""Given to the guest's OpenVPN as they stand."""

FILES: Final = frozenset(
    {
        "ca", "cert", "extra-certs", "key", "tls-auth", "tls-crypt", "tls-crypt-v2", "pkcs12",
        "crl-verify",
    }
)  # fmt: skip
"""A file's name, or the file itself inline: read on this host, and always given inline."""

INLINE: Final = FILES | {"peer-fingerprint", "verify-hash", "auth-user-pass", "connection", "dh"}
"""May be written ``<like> ... </this>``."""

SECRET: Final = frozenset(
    {"key", "tls-auth", "tls-crypt", "tls-crypt-v2", "pkcs12", "auth-user-pass", "secret"}
)

BINARY: Final = frozenset({"pkcs12"})
"""Inline they stand in base64."""

LEFT_OUT: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("user", "group", "persist-key", "nice", "mlock", "fast-io", "multihome"),
        "it is about the process, which is in a guest of its own",
    ),
    **dict.fromkeys(
        ("persist-tun", "persist-local-ip", "persist-remote-ip", "up-restart"),
        "an interface that outlives its connection would hold up what it can't carry",
    ),
    **dict.fromkeys(
        ("resolv-retry", "connect-retry-max", "auth-retry", "ping-exit"),
        "microvm decides how to try again",
    ),
    **dict.fromkeys(
        ("verb", "mute", "suppress-timestamps", "machine-readable-output"),
        "microvm reads the log itself",
    ),
    **dict.fromkeys(
        ("redirect-gateway", "redirect-private", "route-gateway", "route-metric", "route-delay",
         "route-nopull", "route-noexec", "route", "route-ipv6", "client-nat", "block-ipv6",
         "allow-recursive-routing"),
        "all that goes through SOCKS5 goes through the tunnel, and nothing else does",
    ),
    **dict.fromkeys(
        ("dev", "dev-type", "tun-ipv6", "disable-dco"), "there is one interface, and it is tun0"
    ),
    **dict.fromkeys(
        ("block-outside-dns", "register-dns", "route-method", "ip-win32", "dhcp-renew",
         "dhcp-release", "tap-sleep", "win-sys", "windows-driver", "service", "show-net-up",
         "pause-exit", "auth-gen-token", "dh", "echo"),
        "it means nothing here",
    ),
}  # fmt: skip
"""Passed over, and why."""

_RUNS: Final = "It would run a program of the guest's. Remove the line."
_ELSEWHERE: Final = "It would take the daemon away from microvm, which runs it. Remove the line."

REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("up", "down", "down-pre", "up-delay", "route-up", "route-pre-down", "ipchange",
         "tls-verify", "auth-user-pass-verify", "client-connect", "client-disconnect",
         "client-crresponse", "learn-address", "iproute", "script-security", "dns-updown"),
        f"{_RUNS} Names are resolved by the VPN's servers without a script.",
    ),
    **dict.fromkeys(
        ("plugin", "engine", "providers", "pkcs11-providers"),
        "It would load a library into the daemon. Remove the line.",
    ),
    **dict.fromkeys(
        ("daemon", "inetd", "log", "log-append", "syslog", "status", "status-version", "writepid",
         "cd", "chroot", "setcon", "config", "askpass", "tmp-dir", "tls-export-cert", "mktun",
         "rmtun", "replay-persist", "dev-node", "lladdr", "ifconfig-pool-persist", "capath",
         "remap-usr1", "mark", "bind-dev", "local", "cryptoapicert", "x509-track",
         "x509-username-field", "genkey", "test-crypto", "up-delay", "port-share"),
        _ELSEWHERE,
    ),
    **dict.fromkeys(
        ("http-proxy", "http-proxy-option", "http-proxy-user-pass", "http-proxy-retry",
         "socks-proxy", "socks-proxy-retry"),
        "The guest goes out by its host's network. Remove the line.",
    ),
    **dict.fromkeys(
        ("server", "server-ipv6", "server-bridge", "mode", "tls-server", "push", "client-to-client",
         "ifconfig-pool", "max-clients", "duplicate-cn", "secret", "static-key"),
        "microvm takes the configuration of a client with certificates.",
    ),
}  # fmt: skip
"""Refused by name, and what to do; `management` and all that begins so as well."""

NEEDED_TUN: Final = "microvm has a tunnel of packets (tun). A bridge (tap) is not supported."

SETENV: Final = ("UV_", "FORWARD_COMPATIBLE", "CLIENT_CERT", "IV_SSO")
"""Variables that `setenv` may set, by their beginning: those that OpenVPN sends to the server."""


def refusal(name: str) -> str | None:
    """Why a directive is refused, with what to do; None if it is not."""
    if name.startswith("management"):
        return "The management interface is microvm's own. Remove the line."
    if name in REFUSED:
        return REFUSED[name]
    if name in PASSED or name in FILES or name in LEFT_OUT:
        return None
    if name in ("auth-user-pass", "setenv"):
        return None
    return "microvm does not know it, and passes on nothing that it does not know."
