"""`OpenVpnProvisioner`: a guest that has OpenVPN, and whose SOCKS5 server goes out by it or not.

The kill switch is closed before the machine is ready, and is never opened by anything but a tunnel
that is up; see `microvm_guest.openvpn.routing`. `OpenVpnTunnel` runs the daemon.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from microvm.abc import GuestLink, Provisioner, ProvisionerNeeds
from microvm.config import DriveConfig, MachineConfig
from microvm.errors import GuestError
from microvm_guest.openvpn import routing
from microvm_guest.openvpn.effective import RUN_DIR

if TYPE_CHECKING:
    from microvm.abc import Guest, GuestChannels
    from microvm.host_clocks import ClockJump
    from microvm.timeline import BootTimeline

MEM_SIZE_MIB: Final = 64
NEEDS: Final = ProvisionerNeeds(
    provisioners=("agent",),
    packages=("busybox-static | busybox", "iproute2", "openvpn"),
    # The two tables are `ip rule` for either family: the kill switch.
    kernel_features=("IPV6_MULTIPLE_TABLES", "IP_MULTIPLE_TABLES", "TUN"),
    remedy="Leave boot and the root drive out: `microvm image build --variant vpn` makes both.",
)
RESOLV_CONF: Final = "/etc/resolv.conf"
MAX_DNS: Final = 3
"""More are not asked (resolv.conf(5), MAXNS)."""


def vpn_machine(**changes: Any) -> MachineConfig:
    """A machine for a VPN: 64 MiB, no network of its own unless `changes` give one.

    Args:
        changes: Whatever of `MachineConfig` is to be otherwise.
    """
    return MachineConfig(
        **{"mem_size_mib": MEM_SIZE_MIB, "provisioners": ("agent", "openvpn"), **changes}
    )


class OpenVpnProvisioner(Provisioner):
    """Brings the image variant `vpn`, and the kill switch."""

    def needs(self, config: MachineConfig) -> ProvisionerNeeds:
        """The agent, and of the image what `build_on` and the daemon use."""
        return NEEDS

    def drives(self, config: MachineConfig) -> Sequence[DriveConfig]:
        """The variant's disk, as the root; none where the user starts from one of their own."""
        from microvm_guest.image.variants import variant_disk

        if any(drive.root for drive in config.drives):
            return ()
        return (DriveConfig(path=variant_disk("vpn").path, read_only=True, root=True),)

    def kernel_cmdline(self, config: MachineConfig) -> Sequence[str]:
        """Names are the VPN's: those that DHCP brings would be asked through the tunnel."""
        return ("microvm.dns=0",)

    @asynccontextmanager
    async def attach(self, channels: GuestChannels) -> AsyncIterator[OpenVpnLink]:
        """Nothing is to be opened before the guest runs."""
        yield OpenVpnLink(channels)


class OpenVpnLink(GuestLink):
    """Its half of a machine: the way of the guest's SOCKS5 server, shut or by the tunnel.

    Args:
        channels: To the guest.
    """

    def __init__(self, channels: GuestChannels) -> None:
        self.channels = channels
        self.on_clock_change: Callable[[ClockJump], Awaitable[None]] | None = None
        """Set by the tunnel while it runs."""
        self._guest: Guest | None = None

    async def wait_ready(self, timeline: BootTimeline) -> None:
        """The agent's report is enough."""

    async def build_on(self, guest: Guest) -> None:
        """Close the kill switch, and make a place for the daemon.

        Raises:
            GuestError: the guest lacks what that takes; the machine does not get ready.
        """
        self._guest = guest
        await self._set_dns(())
        for family in routing.FAMILIES:
            await self._ip(family, routing.closing(family))
        await guest.run(["busybox", "mkdir", "-p", "-m", "0700", RUN_DIR], check=True)
        await guest.socks5_handler()

    async def clock_changed(self, jump: ClockJump) -> None:
        """The guest may have stood still: whoever the tunnel was with may have given it up."""
        if self.on_clock_change is not None:
            await self.on_clock_change(jump)

    async def open_way(self, dns: Sequence[str], *, ipv6: bool) -> None:
        """The tunnel is up: let the SOCKS5 server out by it, names included.

        Raises:
            GuestError: the interface is gone again.
        """
        await self._set_dns(dns)
        await self._ip("-4", routing.opening())
        if ipv6:
            await self._ip("-6", routing.opening())

    async def shut_way(self) -> None:
        """The tunnel is down, or is not to be used. Twice is fine."""
        assert self._guest is not None
        try:
            await self._set_dns(())
        finally:
            for family in routing.FAMILIES:
                await self._guest.run(
                    ["ip", family, "-force", "-batch", "-"], stdin=routing.shutting().encode()
                )

    async def _ip(self, family: str, batch: str) -> None:
        assert self._guest is not None
        argv = ["ip", family, "-batch", "-"]
        done = await self._guest.run(argv, stdin=batch.encode())
        if not done.success:
            said = done.stderr.decode("utf-8", "backslashreplace").strip()[:500]
            raise GuestError(f"The guest's routes can't be set: {said!r}")

    async def _set_dns(self, servers: Sequence[str]) -> None:
        assert self._guest is not None
        text = "".join(f"nameserver {server}\n" for server in numeric(servers))
        await self._guest.files.write_text(RESOLV_CONF, text)


def numeric(servers: Sequence[str]) -> list[str]:
    """Those that are addresses; the guest and the VPN's server say them, and may say anything."""
    found = []
    for server in servers:
        try:
            found.append(str(ipaddress.ip_address(server)))
        except ValueError:
            continue
    return found[:MAX_DNS]
