"""rng, console and balloon with Linux's own drivers; the latter two where our own VMM runs."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import microvm_devices.balloon.plugin
import microvm_devices.console.plugin
import microvm_devices.rng.plugin
import microvm_devices.vsock.plugin
import microvm_guest.plugin
import microvm_kvm.plugin
import microvm_qemu.plugin
from microvm import ConsoleConfig, DeviceConfig, Machine, MachineConfig, OutcomeReason
from microvm.abc import VirtioDevice
from microvm.plugins import DeviceFactory
from microvm.testing.plugins import plugin_manager
from microvm_devices.balloon.device import BalloonDevice
from microvm_devices.console.device import ConsoleDevice

pytestmark = [pytest.mark.linux_guest, pytest.mark.usefixtures("leaves_nothing")]

OURS = {
    "backend/kvm": microvm_kvm.plugin,
    "backend/qemu": microvm_qemu.plugin,
    "device/vsock": microvm_devices.vsock.plugin,
    "provisioner/agent": microvm_guest.plugin,
}
MIB = 1 << 20


def machine_with(device: VirtioDevice, mem_size_mib: int = 64) -> Machine:
    """A machine with this very device, so that a test has both ends of it."""
    factory = DeviceFactory(
        name="under-test",
        summary="the device under test",
        virtio_id=device.device_id,
        create=lambda options: device,
    )
    config = MachineConfig(mem_size_mib=mem_size_mib, devices=[DeviceConfig(name="under-test")])
    return Machine(config, plugins=plugin_manager(factory, plugins=OURS))


async def shell(machine: Machine, script: str) -> str:
    return (await machine.run(["sh", "-c", script], check=True)).stdout.decode()


async def until(condition: Callable[[], bool], slower: int) -> None:
    """Wait until it holds; the guest does things in its own time."""
    with trio.fail_after(30 * slower):
        while not condition():  # noqa: ASYNC110 - what is waited for is in another machine
            await trio.sleep(0.05)


# --- rng ---------------------------------------------------------------------------------------


async def test_a_guest_reads_the_hosts_entropy() -> None:
    device = microvm_devices.rng.plugin.create({})
    async with machine_with(device) as machine:
        name = await shell(machine, "cat /sys/class/misc/hw_random/rng_current")
        reads = [
            (await machine.run(["dd", "if=/dev/hwrng", "bs=64", "count=64"], check=True)).stdout
            for _ in range(2)
        ]
    assert name.startswith("virtio_rng")
    assert [len(read) for read in reads] == [4096, 4096]
    assert reads[0] != reads[1]
    assert len(set(reads[0])) > 200
    assert device.counters()["written_bytes"] >= 8192


# --- console -----------------------------------------------------------------------------------

PORT = "for port in /sys/class/virtio-ports/*; do grep -qx metrics $port/name && break; done; "


@pytest.fixture
def own_vmm(backend: str) -> None:
    if backend == "qemu":
        pytest.skip("QEMU has no vhost-user front end for this device")


@pytest.mark.usefixtures("own_vmm")
async def test_a_named_port_is_a_stream_both_ways_and_ends_with_its_program() -> None:
    console = microvm_devices.console.plugin.create({"ports": ["metrics"]})
    assert isinstance(console, ConsoleDevice)
    async with machine_with(console) as machine, console.open_port("metrics") as stream:
        await stream.send_all(b"question\n")
        script = PORT + "exec 3<>/dev/${port##*/}; read line <&3; echo answer to $line >&3"
        await shell(machine, script)
        answer = b""
        async for part in stream:
            answer += part
        assert answer == b"answer to question\n"


@pytest.mark.usefixtures("own_vmm")
async def test_in_a_worker_process_a_port_and_a_balloon_do_the_same(slower: int) -> None:
    devices = [
        DeviceConfig(name="console", options={"ports": ["metrics"]}),
        DeviceConfig(name="balloon"),
    ]
    config = MachineConfig(mem_size_mib=128, isolation="process", devices=devices)
    async with Machine(config) as machine:
        async with await machine.open_device_stream("console0", "metrics") as stream:
            await stream.send_all(b"question\n")
            script = PORT + "exec 3<>/dev/${port##*/}; read line <&3; echo answer to $line >&3"
            await shell(machine, script)
            assert b"".join([part async for part in stream]) == b"answer to question\n"
        with trio.fail_after(30 * slower):
            facts = await machine.device_command("balloon0", "target", mib=32)
            while facts["actual_mib"] != 32:
                await trio.sleep(0.05)
                facts = await machine.device_command("balloon0", "target")
            figures = await machine.device_command("balloon0", "statistics")
        free_kib = (await meminfo_kib(machine))["MemFree"]
        assert abs(int(figures["free_bytes"] or 0) // 1024 - free_kib) < 4096


@pytest.mark.usefixtures("own_vmm")
async def test_a_mebibyte_through_a_port_arrives_whole() -> None:
    console = microvm_devices.console.plugin.create({"ports": ["metrics"]})
    assert isinstance(console, ConsoleDevice)
    script = PORT + "dd if=/dev/urandom of=/data bs=4096 count=256; sha256sum /data; "
    async with machine_with(console) as machine, console.open_port("metrics") as stream:
        printed: list[str] = []
        digest, length = hashlib.sha256(), 0

        async def send() -> None:
            printed.append(await shell(machine, script + "cat /data > /dev/${port##*/}"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for part in stream:
                digest.update(part)
                length += len(part)
    assert length == MIB
    assert printed[0].startswith(digest.hexdigest())


@pytest.mark.usefixtures("own_vmm")
async def test_what_is_printed_to_hvc0_is_kept_on_the_host(slower: int) -> None:
    console = microvm_devices.console.plugin.create({"ports": ["metrics"]})
    assert isinstance(console, ConsoleDevice)
    async with machine_with(console) as machine:
        await shell(machine, "echo printed by the guest > /dev/hvc0")
        await until(lambda: "printed by the guest" in console.hub.tail(), slower)


@pytest.mark.usefixtures("own_vmm")
async def test_the_machines_own_console_can_be_hvc0(tmp_path: Path, slower: int) -> None:
    console = ConsoleConfig(device="virtio", output="file", path=tmp_path / "log")
    # A few lines of the kernel's log: its first ones come by the serial port, byte by byte.
    config = MachineConfig(console=console, cmdline="loglevel=6", ready_within_s=60 * slower)
    async with Machine(config) as machine:
        await machine.wait_ready()
        before = sum(machine.exit_counts.values())
        await shell(machine, "seq 2000 > /dev/hvc0")
        # Linux wants an interrupt for each of the 2000 lines, which it asks about and acknowledges;
        # a serial port would have one exit at least for each of their 8893 bytes.
        assert sum(machine.exit_counts.values()) - before < 6000
        # What is typed while no program has hvc0 open, Linux keeps until the next key.
        script = "exec </dev/hvc0; echo open; read line; echo got $line"
        async with machine.spawn(["sh", "-c", script]) as shown:
            with trio.fail_after(30 * slower):
                async with await machine.open_console() as stream:
                    assert await shown.stdout.receive_some() == b"open\n"
                    await stream.send_all(b"typed by the host\n")
                    assert await shown.stdout.receive_some() == b"got typed by the host\n"
        # It dies when told to: a command that crashes at once may never say that it has started.
        crash = ["sh", "-c", "read go; echo c >/proc/sysrq-trigger"]
        async with machine.spawn(crash) as process:
            await process.stdin.send_all(b"\n")
            outcome = await machine.wait()
    assert outcome.reason is OutcomeReason.PANIC
    text = (tmp_path / "log").read_text()
    # From the first word on, which came before there was an hvc0.
    for words in ("Linux version", "\n2000\n", "Kernel panic - not"):
        assert words in text.replace("\r", "")


# --- balloon -----------------------------------------------------------------------------------


def rss_mib() -> int:
    """Of this process: the guest's memory is in it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // MIB


async def meminfo_kib(machine: Machine) -> dict[str, int]:
    lines = (line.split(":") for line in (await shell(machine, "cat /proc/meminfo")).splitlines())
    return {name: int(value.split()[0]) for name, value in lines}


@pytest.mark.usefixtures("own_vmm")
@pytest.mark.parametrize("deflate_on_oom", [True, False])
async def test_a_balloon_is_filled_and_its_figures_are_the_guests(
    deflate_on_oom: bool, slower: int
) -> None:
    balloon = microvm_devices.balloon.plugin.create({"deflate_on_oom": deflate_on_oom})
    assert isinstance(balloon, BalloonDevice)
    async with machine_with(balloon, mem_size_mib=256) as machine:
        before = await meminfo_kib(machine)
        balloon.set_target_mib(64)
        await until(lambda: balloon.actual_mib == 64, slower)
        assert balloon.counters()["inflated_bytes"] >= 64 * MIB
        with trio.fail_after(30 * slower):
            figures = await balloon.ask_statistics()
        after = await meminfo_kib(machine)
        assert figures["total_bytes"] // 1024 == after["MemTotal"]
        for figure, name in (("free_bytes", "MemFree"), ("available_bytes", "MemAvailable")):
            assert abs(figures[figure] // 1024 - after[name]) < 4096
        assert before["MemFree"] - after["MemFree"] > 60 * 1024
        # What Linux may take back when it is short counts as memory that it has.
        gone = 0 if deflate_on_oom else 64 * 1024
        assert before["MemTotal"] - after["MemTotal"] == gone
        balloon.set_target_mib(0)
        await until(lambda: balloon.actual_mib == 0, slower)
        restored = await meminfo_kib(machine)
        assert restored["MemTotal"] == before["MemTotal"]
        assert restored["MemFree"] - after["MemFree"] > 60 * 1024


@pytest.mark.usefixtures("own_vmm")
async def test_memory_in_the_balloon_is_the_hosts_again(slower: int) -> None:
    balloon = microvm_devices.balloon.plugin.create({"free_page_reporting": False})
    assert isinstance(balloon, BalloonDevice)
    async with machine_with(balloon, mem_size_mib=256) as machine:
        await shell(machine, "dd if=/dev/zero of=/full bs=1M count=96 && rm /full")
        full = rss_mib()
        balloon.set_target_mib(192)  # more than was free before: much of it had been written to
        await until(lambda: balloon.actual_mib == 192, slower)
        await until(lambda: full - rss_mib() >= 60, slower)
        assert balloon.counters()["reclaimed_bytes"] >= 60 * MIB
        balloon.set_target_mib(0)
        await until(lambda: balloon.actual_mib == 0, slower)
        await shell(machine, "dd if=/dev/zero of=/full bs=1M count=96 && rm /full")


@pytest.mark.usefixtures("own_vmm")
async def test_memory_that_the_guest_has_freed_goes_back_by_itself(slower: int) -> None:
    balloon = microvm_devices.balloon.plugin.create({})
    assert isinstance(balloon, BalloonDevice)
    async with machine_with(balloon, mem_size_mib=256) as machine:
        await shell(machine, "dd if=/dev/zero of=/full bs=1M count=96")
        full = rss_mib()
        reclaimed = balloon.counters()["reclaimed_bytes"]
        await shell(machine, "rm /full")
        await until(lambda: full - rss_mib() >= 80, slower)
        assert balloon.counters()["reclaimed_bytes"] - reclaimed >= 80 * MIB
        assert balloon.counters()["reported_bytes"] >= 80 * MIB
