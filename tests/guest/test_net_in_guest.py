"""A guest's own driver on a network: by passt and by TAP; addresses, names, bytes both ways."""

import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from tests.guest.conftest import static_program
from tests.guest.net_peer import check_traffic, peer_at, shell

from microvm import Machine, MachineConfig, NetConfig

pytestmark = pytest.mark.linux_guest

HERE = Path(__file__).parent
SIZE = int(os.environ.get("MICROVM_NET_MIB") or (2 if os.environ.get("MICROVM_LAB") else 16)) << 20
"""What goes each way. The lab's CPU is one in software; a soak sets the variable (1024, say)."""

not_in_the_lab = pytest.mark.skipif(
    bool(os.environ.get("MICROVM_LAB")),
    reason="several vCPUs want a lab of one CPU, and there the passt of Debian 12 was seen to stop "
    "acknowledging what a guest sends to a slow reader (docs/devices/net.md)",
)
needs_passt = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")


@pytest.fixture(scope="session")
def udp_ping(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static program for the guest; see udp_ping.c."""
    return static_program("udp_ping", tmp_path_factory.mktemp("udp_ping"))


@pytest.fixture(scope="session")
def net_channels(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static program for the guest; see net_channels.c."""
    return static_program("net_channels", tmp_path_factory.mktemp("net_channels"))


def with_passt(**options: object) -> MachineConfig:
    return MachineConfig(nets=(NetConfig(backend="passt", options=options),))


GATEWAY = "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'"


@needs_passt
async def test_with_passt_a_guest_has_an_address_a_way_out_and_a_name_server(
    leaves_nothing: None,
) -> None:
    """The first command, right after boot: there is nothing to set up, and nothing to wait for."""
    async with Machine(with_passt()) as machine:
        text = await shell(machine, "ip -4 addr show dev eth0; ip route; cat /etc/resolv.conf")
        assert "inet " in text
        assert "default via " in text
        assert "nameserver " in text
        assert await shell(machine, "cat /sys/class/net/eth0/mtu") == "65520"


@needs_passt
async def test_bytes_pass_by_passt_both_ways_to_the_host_itself(
    leaves_nothing: None, udp_ping: bytes
) -> None:
    """Few, since what is sent this way may stand still (docs/devices/net.md)."""
    async with (
        peer_at("127.0.0.1", min(SIZE, 16 << 20)) as peer,
        Machine(with_passt(host_access=True)) as machine,
    ):
        gateway = await shell(machine, GATEWAY)
        await check_traffic(machine, peer, gateway, udp_ping)


@needs_passt
async def test_by_default_the_hosts_own_programs_are_out_of_reach() -> None:
    async with peer_at("127.0.0.1", SIZE) as peer, Machine(with_passt()) as machine:
        script = f"nc -w 2 $({GATEWAY}) {peer.source} 2>/dev/null | wc -c"
        assert await shell(machine, script) == "0"


@needs_passt
async def test_a_port_of_the_host_leads_to_the_guest() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    async with Machine(with_passt(tcp_ports=[f"{port}:7000"])) as machine:
        # passt knows the guest when it has heard of it, and that is with its address.
        await shell(machine, "nc -ll -p 7000 -e cat >/dev/null 2>&1 &")
        with trio.fail_after(60):
            answer = b""
            while not answer:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    # Until the guest listens, passt hangs up. (The passt of Debian 12 confirms a
                    # connection to the guest with the first bytes: we speak first.)
                    with suppress(trio.BrokenResourceError):
                        await stream.send_all(b"to the guest and back")
                        answer = await stream.receive_some()
    assert answer == b"to the guest and back"


async def test_a_machine_without_an_answer_to_dhcp_runs_its_commands_all_the_same() -> None:
    """They wait for 3 s of the guest's time, and no longer."""
    nets = (NetConfig(backend="null"),)
    config = MachineConfig(nets=nets, cmdline="microvm.dhcp=eth0")
    async with Machine(config) as machine:
        assert await shell(machine, "echo still here") == "still here"
        uptime = float((await shell(machine, "cat /proc/uptime")).split()[0])
        assert uptime > 3


@needs_passt
async def test_two_networks_are_two_interfaces_in_their_order(leaves_nothing: None) -> None:
    nets = (
        NetConfig(backend="passt", mac="02:00:00:00:00:0a"),
        NetConfig(backend="loopback", mac="02:00:00:00:00:0b", mtu=1400),
    )
    async with Machine(MachineConfig(nets=nets)) as machine:
        text = await shell(machine, "cat /sys/class/net/eth[01]/address /sys/class/net/eth1/mtu")
    assert text.split() == ["02:00:00:00:00:0a", "02:00:00:00:00:0b", "1400"]


@pytest.mark.smp
@not_in_the_lab
@needs_passt
async def test_several_queues_carry_the_same_bytes(udp_ping: bytes) -> None:
    net = NetConfig(backend="passt", options={"host_access": True}, queues=2)
    config = MachineConfig(nets=(net,), vcpu_count=2)
    async with peer_at("127.0.0.1", SIZE) as peer, Machine(config) as machine:
        assert (await shell(machine, "ls -d /sys/class/net/eth0/queues/tx-*")).count("tx-") == 2
        gateway = await shell(machine, GATEWAY)
        await check_traffic(machine, peer, gateway, udp_ping)


@pytest.mark.smp
@not_in_the_lab
@needs_passt
async def test_a_guest_may_use_fewer_pairs_of_queues_than_it_has_and_more_again(
    udp_ping: bytes, net_channels: bytes
) -> None:
    net = NetConfig(backend="passt", options={"host_access": True}, queues=2)
    config = MachineConfig(nets=(net,), vcpu_count=2)
    async with peer_at("127.0.0.1", SIZE) as peer, Machine(config) as machine:
        gateway = await shell(machine, GATEWAY)
        for name, program in (("udp_ping", udp_ping), ("net_channels", net_channels)):
            await shell(machine, f"cat >/tmp/{name}; chmod +x /tmp/{name}", program)
        for pairs in (1, 2, 1, 2):
            await shell(machine, f"/tmp/net_channels eth0 {pairs}")
            answer = await shell(machine, f"/tmp/udp_ping {gateway} {peer.echo} 100 1000")
            assert (pairs, answer) == (pairs, "100")


def in_a_namespace(program: str, *words: object) -> str:
    """Run a program of this folder in network and mount namespaces of its own; what it printed."""
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("a TAP interface in a network namespace needs root and /dev/net/tun")
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, HERE / program, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=(900 if os.environ.get("MICROVM_LAB") else 180) + SIZE // (1 << 20),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_passt
@pytest.mark.parametrize("name_servers", ["given", "systemd-resolved", "the gateway's"])
def test_names_and_pings_pass_by_passt(name_servers: str) -> None:
    """systemd-resolved's with no option at all; the gateway's where its address is the host too."""
    printed = in_a_namespace("net_over_passt.py", name_servers)
    assert "Name:\tsomewhere.example\nAddress: 198.51.100.7" in printed
    assert "PING somewhere.example (198.51.100.7)" in printed
    assert "3 packets received" in printed


@pytest.mark.soak
def test_bytes_pass_by_tap_both_ways_and_a_ping_comes_back(udp_ping: bytes, tmp_path: Path) -> None:
    program = tmp_path / "udp_ping"
    program.write_bytes(udp_ping)
    assert "3 packets received" in in_a_namespace("net_over_tap.py", program, SIZE)


@pytest.mark.soak
@needs_passt
def test_bytes_pass_by_passt_both_ways_to_another_host(udp_ping: bytes, tmp_path: Path) -> None:
    program = tmp_path / "udp_ping"
    program.write_bytes(udp_ping)
    in_a_namespace("net_beyond_passt.py", program, SIZE)


FLOOD_S = 60 if "MICROVM_NET_MIB" in os.environ else 5


@pytest.mark.soak
def test_49_a_guest_that_was_flooded_while_it_took_nothing_is_there_at_once() -> None:
    """Row 49, with the guest's own driver: nothing is held for it but a frame."""
    printed = in_a_namespace("net_flood.py", FLOOD_S)
    assert "1 packets received" in printed
    took = re.search(r"took (\d+) datagrams, grew by (-?\d+) bytes", printed)
    assert took is not None
    assert int(took[1]) > 5000
    assert int(took[2]) < 32 << 20
