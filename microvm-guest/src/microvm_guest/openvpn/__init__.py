"""OpenVPN in the guest: its configuration, its daemon, and what is known of the tunnel.

async with Machine(vpn_machine()) as machine:
    config = read_config("client.ovpn")
    async with OpenVpnTunnel(machine, config, Credentials("me", "secret")) as vpn:
        await vpn.wait_connected()
        async with await machine.socks5() as proxy:
            ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microvm_guest.openvpn.config import OpenVpnConfig, read_config
    from microvm_guest.openvpn.credentials import Challenge, Credentials, read_auth_file
    from microvm_guest.openvpn.errors import VpnConfigError, VpnFailed
    from microvm_guest.openvpn.states import VpnReason, VpnState
    from microvm_guest.openvpn.status import LogLine, StateChanged, VpnEvent, VpnStatus
    from microvm_guest.openvpn.tunnel import OpenVpnTunnel
    from microvm_guest.provisioners.openvpn import vpn_machine

__all__ = [
    "Challenge",
    "Credentials",
    "LogLine",
    "OpenVpnConfig",
    "OpenVpnTunnel",
    "StateChanged",
    "VpnConfigError",
    "VpnEvent",
    "VpnFailed",
    "VpnReason",
    "VpnState",
    "VpnStatus",
    "read_auth_file",
    "read_config",
    "vpn_machine",
]

_HOMES = {
    "Challenge": "credentials",
    "Credentials": "credentials",
    "LogLine": "status",
    "OpenVpnConfig": "config",
    "OpenVpnTunnel": "tunnel",
    "StateChanged": "status",
    "VpnConfigError": "errors",
    "VpnEvent": "status",
    "VpnFailed": "errors",
    "VpnReason": "states",
    "VpnState": "states",
    "VpnStatus": "status",
    "read_auth_file": "credentials",
    "read_config": "config",
    "vpn_machine": "microvm_guest.provisioners.openvpn",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home if "." in home else f"{__name__}.{home}"), name)
