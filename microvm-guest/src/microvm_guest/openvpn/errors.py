"""What goes wrong with a VPN, for a person to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm.errors import ConfigError, GuestError, GuestProtocolError

if TYPE_CHECKING:
    from microvm_guest.openvpn.states import VpnReason


class VpnConfigError(ConfigError):
    """An OpenVPN configuration can't be used; names lines and directives, never their secrets."""

    code = "config.vpn"


class VpnFailed(GuestError):
    """The tunnel is down and will not come up by itself.

    Args:
        message: What happened.
        reason: The same, to be compared with.
        remedy: What the reader can do about it.
    """

    code = "guest.vpn"

    def __init__(self, message: str, *, reason: VpnReason, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.reason = reason


class ManagementError(GuestProtocolError):
    """What came is not OpenVPN's management protocol."""

    code = "guest.protocol.vpn"
