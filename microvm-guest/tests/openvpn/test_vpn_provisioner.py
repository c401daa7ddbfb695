"""`OpenVpnProvisioner`: its disk, its kill switch, and what is refused before the boot."""

from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from microvm import BootSource, DriveConfig, MachineConfig
from microvm._assembly import assemble
from microvm.abc import Capability, RunResult, VirtioDevice
from microvm.config import ConfigProblem
from microvm.errors import ConfigError, GuestError
from microvm.host_clocks import ClockJump
from microvm.plugins import DeviceFactory, ProvisionerFactory
from microvm.testing.channels import MemoryChannels
from microvm.testing.platform import ScriptedBackend
from microvm.testing.plugins import plugin_manager
from microvm.timeline import BootTimeline
from microvm_guest import plugin as agent_plugin
from microvm_guest.image import BuildError, ImageNotBuilt
from microvm_guest.image.facts import built_in
from microvm_guest.image.variants import variant
from microvm_guest.kernel import fragment_paths
from microvm_guest.openvpn import plugin, routing
from microvm_guest.provisioners.openvpn import (
    OpenVpnLink,
    OpenVpnProvisioner,
    numeric,
    vpn_machine,
)

from ..written_images import put_disk, put_image


class Files:
    def __init__(self, order):
        self.order = order
        self.full = False

    async def write_text(self, path, text):
        if self.full:
            raise GuestError("The guest has no room.")
        self.order.append((path, text))


class Router:
    """A guest, as far as this provisioner uses it; one that can't set routes if told so."""

    def __init__(self, *, fails: str = "") -> None:
        self.order = []
        self.files = Files(self.order)
        self.fails = fails

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", check: bool = False):
        self.order.append((tuple(argv), stdin.decode()))
        failed = bool(self.fails) and self.fails in argv
        return RunResult(
            argv=tuple(argv), exit_code=int(failed), signal=None, stdout=b"", stderr=b"no\x1b"
        )

    async def socks5_handler(self):
        self.order.append("server")


@asynccontextmanager
async def link_on(guest):
    async with OpenVpnProvisioner().attach(MemoryChannels()) as link:
        assert isinstance(link, OpenVpnLink)
        assert await link.wait_ready(BootTimeline()) is None
        await link.build_on(guest)
        yield link


async def test_the_switch_is_closed_for_both_families_before_there_is_a_server() -> None:
    guest = Router()
    async with link_on(guest):
        assert guest.order[-1] == "server"
        batches = {argv[1]: text for argv, text in guest.order[:-1] if argv[0] == "ip"}
    assert set(batches) == {"-4", "-6"}
    for text in batches.values():
        lines = text.splitlines()
        assert lines[0].startswith("route add unreachable default")
        # The kernel's own rule goes last: were it gone first, loopback would be for a moment.
        assert lines[-1] == "rule del pref 0"
        assert any("uidrange 1080-1080 lookup 1080" in line for line in lines)


async def test_a_guest_that_can_not_close_it_does_not_get_ready() -> None:
    for family in routing.FAMILIES:
        guest = Router(fails=family)
        with pytest.raises(GuestError, match="routes can't be set") as caught:
            async with link_on(guest):
                raise AssertionError
        assert "server" not in guest.order
        assert "\x1b" not in str(caught.value)


async def test_the_way_is_opened_by_family_with_the_tunnels_names_and_shut_with_none() -> None:
    guest = Router()
    async with link_on(guest) as link:
        guest.order.clear()
        await link.open_way(("10.0.0.1", "not an address\nnameserver evil"), ipv6=False)
        assert guest.order == [
            ("/etc/resolv.conf", "nameserver 10.0.0.1\n"),
            (("ip", "-4", "-batch", "-"), routing.opening()),
        ]
        guest.order.clear()
        await link.shut_way()
        assert guest.order[0] == ("/etc/resolv.conf", "")
        assert [argv[1] for argv, _ in guest.order[1:]] == ["-4", "-6"]


async def test_the_way_is_shut_though_names_can_not_be_taken_away() -> None:
    guest = Router()
    async with link_on(guest) as link:
        guest.order.clear()
        guest.files.full = True
        with pytest.raises(GuestError, match="no room"):
            await link.shut_way()
    assert [argv[1] for argv, _ in guest.order] == ["-4", "-6"]


async def test_a_clock_change_is_for_whoever_runs_a_tunnel() -> None:
    told = []
    jump = ClockJump(slept_s=60.0, set_by_s=0.0)

    async def tell(jump: ClockJump) -> None:
        told.append(jump)

    async with link_on(Router()) as link:
        await link.clock_changed(jump)
        link.on_clock_change = tell
        await link.clock_changed(jump)
    assert told == [jump]


def test_name_servers_are_addresses_and_few() -> None:
    assert numeric(["1.1.1.1", "x", "fd00::1", "2.2.2.2", "3.3.3.3"]) == [
        "1.1.1.1", "fd00::1", "2.2.2.2"
    ]  # fmt: skip


def test_its_disk_is_the_root_unless_the_user_has_one(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROVM_CACHE_DIR", str(tmp_path))
    own = MachineConfig(drives=(DriveConfig(path="own.ext4", root=True),))
    assert OpenVpnProvisioner().drives(own) == ()
    with pytest.raises(ImageNotBuilt, match="microvm image build --variant vpn"):
        OpenVpnProvisioner().drives(vpn_machine())
    with pytest.raises(BuildError, match="Known: vpn"):
        variant("vnp")


def test_names_that_dhcp_brings_are_not_taken() -> None:
    assert "microvm.dns=0" in OpenVpnProvisioner().kernel_cmdline(vpn_machine())


class Dial(VirtioDevice):
    """A device that is never run."""

    device_id = 4
    queue_max_sizes = (16,)

    async def run(self, activation: Any) -> None:
        raise AssertionError


def refused(tmp_path: Path, kernel_config: str, packages: Sequence[str]) -> list[ConfigProblem]:
    """What is told of a VPN machine of an image and a disk with these."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    put_image(image, kernel_config)
    put_disk(disk, packages)
    kinds = {"vsock": 19, "blk": 2}
    devices = [
        DeviceFactory(name=name, summary="for tests", virtio_id=number, create=lambda _: Dial())
        for name, number in kinds.items()
    ]
    backend = ScriptedBackend(capabilities=frozenset(Capability))
    provisioners = {"provisioner/agent": agent_plugin, "provisioner/openvpn": plugin}
    plugins = plugin_manager(backend.factory(), *devices, plugins=provisioners)
    config = vpn_machine(
        boot=BootSource(kernel=image / "vmlinux"),
        drives=(DriveConfig(path=disk / "disk.erofs", read_only=True, root=True),),
    )
    try:
        assemble(config, plugins, BootTimeline())
    except ConfigError as error:
        return list(error.problems)
    return []


ALL_ON = "CONFIG_TUN=y\nCONFIG_IP_MULTIPLE_TABLES=y\nCONFIG_IPV6_MULTIPLE_TABLES=y\n"


def test_an_image_with_all_that_it_needs_is_taken(tmp_path: Path) -> None:
    assert refused(tmp_path, ALL_ON, ("busybox", "iproute2", "libc6", "openvpn")) == []


def test_a_kernel_and_a_disk_that_lack_something_are_refused_before_the_boot(
    tmp_path: Path,
) -> None:
    kernel, disk = refused(tmp_path, "# CONFIG_TUN is not set\n", ("iproute2",))
    assert (kernel.where, disk.where) == ("boot.kernel", "drives[0]")
    assert "IPV6_MULTIPLE_TABLES, IP_MULTIPLE_TABLES, TUN built into" in kernel.what
    assert "the packages busybox-static | busybox, openvpn;" in disk.what
    for problem in (kernel, disk):
        assert problem.remedy is not None
        assert "microvm image build --variant vpn" in problem.remedy


def test_its_own_variant_has_the_packages_that_it_needs() -> None:
    needed = OpenVpnProvisioner().needs(vpn_machine()).packages
    assert {one.partition(" |")[0] for one in needed} <= set(variant("vpn").packages)


def test_our_own_kernel_is_configured_with_what_it_needs() -> None:
    fragments = "".join(path.read_text() for path in fragment_paths("x86_64"))
    needed = OpenVpnProvisioner().needs(vpn_machine()).kernel_features
    assert needed <= set(built_in(fragments))


def test_it_needs_the_agent_that_runs_it() -> None:
    assert OpenVpnProvisioner().needs(vpn_machine()).provisioners == {"agent"}


def test_the_plugin_offers_it() -> None:
    factory = plugin.microvm_register_provisioner()
    assert isinstance(factory, ProvisionerFactory)
    assert factory.name == "openvpn"
    assert isinstance(factory.create(), OpenVpnProvisioner)


def test_a_vpn_machine_is_small_and_without_a_network_unless_told() -> None:
    config = vpn_machine(backend="qemu")
    assert (config.mem_size_mib, config.nets, config.backend) == (64, (), "qemu")
    assert vpn_machine(mem_size_mib=128).mem_size_mib == 128
