"""Disks as guests use them, with the kernel's own driver and the usual programs."""

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from tools import guest_disks

from microvm import (
    BootError,
    BootSource,
    DriveConfig,
    Machine,
    MachineConfig,
    OutcomeReason,
    RunResult,
)
from microvm_guest.image import GuestDisk, Silent, compose, default_image

pytestmark = pytest.mark.linux_guest

MIB = 1 << 20
KILLS, ALL_KILLS = 4, 50
"""How often the machine is killed in the middle of its writes, in a usual run and at most."""


def with_system(system: GuestDisk, *drives: DriveConfig, mem_size_mib: int = 192) -> MachineConfig:
    """A machine that starts from the system disk, /dev/vda, and has others from /dev/vdb on."""
    root = DriveConfig(path=system.path, read_only=True, root=True)
    return MachineConfig(drives=(root, *drives), mem_size_mib=mem_size_mib)


def blank(path: Path, size_mib: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)
    return path


async def sh(machine: Machine, script: str) -> RunResult:
    """Run a shell script that must succeed; what it said is in the failure."""
    result = await machine.run(["sh", "-ec", script])
    assert result.success, (script, result.stdout[-2000:], result.stderr[-2000:])
    return result


async def test_a_file_system_made_and_written_in_a_guest_is_clean_and_holds_what_was_written(
    system_disk: GuestDisk, tmp_path: Path, leaves_nothing: None
) -> None:
    disk = DriveConfig(path=blank(tmp_path / "disk", 64))
    async with Machine(with_system(system_disk, disk)) as machine:
        await sh(
            machine,
            "mkfs.ext4 -q /dev/vdb; mount /dev/vdb /mnt; head -c 20M /dev/urandom > /mnt/file;"
            "sync /mnt/file; sha256sum < /mnt/file > /mnt/sum; mkdir /mnt/many;"
            "for i in $(seq 200); do echo $i > /mnt/many/$i; done; umount /mnt",
        )
        await sh(machine, "e2fsck -fn /dev/vdb")
    async with Machine(with_system(system_disk, disk)) as machine:
        await sh(machine, "mount /dev/vdb /mnt; sha256sum < /mnt/file | cmp - /mnt/sum")
        assert (await sh(machine, "ls /mnt/many | wc -l")).stdout == b"200\n"


FIO = [
    ("psync", "randwrite", 1, "4k"),
    ("psync", "write", 1, "64k"),
    ("libaio", "randwrite", 4, "4k"),
    ("libaio", "write", 32, "128k"),
    ("libaio", "randrw", 32, "512-16k"),
    ("io_uring", "randwrite", 32, "4k"),
    ("io_uring", "randwrite", 1, "1m"),
]


@pytest.mark.parametrize(("engine", "pattern", "depth", "block"), FIO)
async def test_what_fio_writes_it_reads_back(
    engine: str, pattern: str, depth: int, block: str, system_disk: GuestDisk, tmp_path: Path
) -> None:
    size = "--bsrange" if "-" in block else "--bs"
    job = (
        f"fio --name=job --filename=/dev/vdb --direct=1 --ioengine={engine} --rw={pattern} "
        f"--iodepth={depth} {size}={block} --size=8m --verify=crc32c --verify_fatal=1 "
        "--do_verify=1 --fsync=64 --randseed=4 --output-format=terse --terse-version=3"
    )
    disk = DriveConfig(path=blank(tmp_path / "disk", 16))
    async with Machine(with_system(system_disk, disk)) as machine:
        fields = (await sh(machine, job)).stdout.decode().strip().splitlines()[-1].split(";")
    assert fields[4] == "0"  # errors
    assert int(fields[46]) > 1024  # KiB written
    assert int(fields[5]) >= int(fields[46])  # KiB read, to compare


async def test_a_disk_ends_where_it_ends(system_disk: GuestDisk, tmp_path: Path) -> None:
    path = blank(tmp_path / "disk", 4)
    async with Machine(with_system(system_disk, DriveConfig(path=path))) as machine:
        full = await machine.run(["sh", "-c", "tr '\\0' x < /dev/zero | dd of=/dev/vdb bs=64k"])
        assert b"No space left on device" in full.stderr
        assert re.search(rb"^4194304 bytes", full.stderr, re.MULTILINE)
        past = await machine.run(
            ["dd", "if=/dev/zero", "of=/dev/vdb", "bs=512", "seek=8192", "count=1", "oflag=direct"]
        )
        assert b"No space left on device" in past.stderr
        beyond = await sh(machine, "dd if=/dev/vdb bs=512 skip=8192 count=1 | wc -c")
        assert beyond.stdout == b"0\n"
        await sh(machine, "sync /dev/vdb; blockdev --flushbufs /dev/vdb")
    assert path.read_bytes() == b"x" * 4 * MIB


async def test_a_read_only_disk_takes_no_write(system_disk: GuestDisk, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"precious" * (MIB // 8))
    async with Machine(with_system(system_disk, DriveConfig(path=path, read_only=True))) as machine:
        assert (await sh(machine, "blockdev --getro /dev/vdb")).stdout == b"1\n"
        for flags in ("", "oflag=direct"):
            argv = ["sh", "-c", f"dd if=/dev/zero of=/dev/vdb bs=4k count=1 conv=fsync {flags}"]
            assert not (await machine.run(argv)).success
        assert (await sh(machine, "head -c 8 /dev/vdb")).stdout == b"precious"
    assert path.read_bytes() == b"precious" * (MIB // 8)


async def test_disks_come_in_the_order_in_which_they_were_given(
    system_disk: GuestDisk, tmp_path: Path
) -> None:
    drives = [
        DriveConfig(path=blank(tmp_path / f"{number}", number), serial=f"disk-{number}")
        for number in (3, 1, 2)
    ]
    async with Machine(with_system(system_disk, *drives)) as machine:
        told = await sh(
            machine, "cd /sys/block; for i in b c d; do cat vd$i/serial; echo; cat vd$i/size; done"
        )
    sizes = [str(number * MIB // 512) for number in (3, 1, 2)]
    assert told.stdout.decode().split() == [
        word for pair in zip(["disk-3", "disk-1", "disk-2"], sizes, strict=True) for word in pair
    ]


@pytest.mark.parametrize("kind", sorted(guest_disks.ROOTS))
async def test_a_machine_starts_from_a_disk_with(
    kind: str, tmp_path: Path, leaves_nothing: None
) -> None:
    disk = compose(guest_disks.ROOTS[kind], Silent())
    root = DriveConfig(path=disk.path, read_only=True, root=True)
    async with Machine(MachineConfig(drives=(root,))) as machine:
        told = await sh(machine, ". /etc/os-release; echo $ID; cat /proc/1/comm; id -un; pwd")
        assert told.stdout.decode().split() == ["debian", "init", "root", "/"]
        mounts = (await sh(machine, "cat /proc/mounts")).stdout.decode()
        assert re.search(r"^overlay / overlay rw,", mounts, re.MULTILINE)
        for place in ("/proc", "/sys", "/dev", "/dev/pts", "/run", "/tmp"):
            assert len(re.findall(rf" {place} ", mounts)) == 1
        await sh(machine, "echo changed > /etc/motd; rm /etc/os-release; echo x > /tmp/x")
        assert (await sh(machine, "cat /etc/motd")).stdout == b"changed\n"
    async with Machine(MachineConfig(drives=(root,))) as machine:
        await sh(machine, "test -e /etc/os-release; ! grep changed /etc/motd")


async def test_what_is_written_to_a_root_disk_is_there_next_time_and_its_file_system_clean(
    system_disk: GuestDisk, tmp_path: Path, leaves_nothing: None
) -> None:
    copy = compose(guest_disks.ROOTS["ext4"], Silent()).copy_to(tmp_path / "root.ext4")
    config = MachineConfig(drives=(DriveConfig(path=copy, root=True),))
    for number in range(2):
        async with Machine(config) as machine:
            await sh(machine, f"grep ' / ext4 rw' /proc/mounts; echo {number} >> /etc/visits")
            assert (await machine.stop()).reason is OutcomeReason.POWERED_OFF
    disk = DriveConfig(path=copy, read_only=True)
    async with Machine(with_system(system_disk, disk)) as machine:
        assert b"needs_recovery" not in (await sh(machine, "dumpe2fs -h /dev/vdb")).stdout
        await sh(machine, "e2fsck -fn /dev/vdb; mount -o ro /dev/vdb /mnt")
        assert (await sh(machine, "cat /mnt/etc/visits")).stdout == b"0\n1\n"


async def test_a_disk_that_a_guest_leaves_mounted_is_clean_when_it_was_asked_to_end(
    system_disk: GuestDisk, tmp_path: Path
) -> None:
    disk = DriveConfig(path=blank(tmp_path / "disk", 16))
    async with Machine(with_system(system_disk, disk)) as machine:
        await sh(machine, "mkfs.ext4 -q /dev/vdb; mount /dev/vdb /mnt; echo kept > /mnt/file")
        await machine.stop()
    async with Machine(with_system(system_disk, disk)) as machine:
        assert b"needs_recovery" not in (await sh(machine, "dumpe2fs -h /dev/vdb")).stdout
        assert (await sh(machine, "mount /dev/vdb /mnt; cat /mnt/file")).stdout == b"kept\n"


def no_file_system(path: Path) -> str:
    path.write_bytes(random.Random(5).randbytes(MIB))
    return "no file system this kernel knows is on it \\(tried .*ext4.*squashfs.*erofs"


def damaged(path: Path) -> str:
    compose(guest_disks.ROOTS["ext4"], Silent()).copy_to(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))  # the group descriptors
    return "its file system is damaged"


@pytest.mark.parametrize("make", [no_file_system, damaged])
async def test_a_machine_that_cant_start_from_its_disk_says_why(
    make: object, tmp_path: Path, leaves_nothing: None
) -> None:
    why = make(tmp_path / "disk")  # type: ignore[operator]
    config = MachineConfig(drives=(DriveConfig(path=tmp_path / "disk", root=True),))
    async with Machine(config) as machine:
        with pytest.raises(BootError, match=rf"(?s)can't start from the root disk /dev/vda: {why}"):
            await machine.wait_ready()


async def test_a_root_disk_that_is_not_there_is_told() -> None:
    async with Machine(MachineConfig(cmdline="microvm.root=/dev/vdz")) as machine:
        with pytest.raises(BootError, match="root disk /dev/vdz: there is no such disk"):
            await machine.wait_ready()


async def test_without_an_agent_the_kernel_itself_starts_the_disks_own_init(
    system_disk: GuestDisk, leaves_nothing: None
) -> None:
    config = MachineConfig(
        boot=BootSource(kernel=default_image().kernel),
        cmdline=f"init={guest_disks.OWN_INIT}",
        drives=(DriveConfig(path=system_disk.path, read_only=True, root=True),),
        vsock=None,
        provisioners=(),
    )
    async with Machine(config) as machine:
        outcome = await machine.wait()
    assert outcome.reason is OutcomeReason.PANIC  # for its init has ended
    assert any("init of my own" in line for line in outcome.console_tail)


WRITER = """\
import sys, trio
from pathlib import Path
from microvm import DriveConfig, Machine, MachineConfig

RECORDS = r'''
use IO::Handle;
open my $log, ">", "/mnt/log" or die;
for (my $n = 1; ; $n++) {
    printf $log "%07d\\n", $n; $log->flush and $log->sync or die;
    syswrite STDOUT, "$n\\n";
}'''

async def main():
    root = DriveConfig(path=sys.argv[1], read_only=True, root=True)
    config = MachineConfig(drives=(root, DriveConfig(path=sys.argv[2])))
    async with Machine(config) as machine:
        await machine.run(["mount", "/dev/vdb", "/mnt"], check=True)
        async with machine.spawn(["perl", "-e", RECORDS]) as process:
            async for chunk in process.stdout:
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()

trio.run(main)
"""


@pytest.fixture(scope="module")
def empty_ext4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = blank(tmp_path_factory.mktemp("ext4") / "disk", 16)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(path)], check=True)
    return path


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=pytest.mark.slow if n >= KILLS else ()) for n in range(ALL_KILLS)],
)
async def test_killed_in_the_middle_of_its_writes_a_machine_loses_no_record_it_flushed(
    number: int, system_disk: GuestDisk, empty_ext4: Path, tmp_path: Path, slower: int
) -> None:
    path = Path(shutil.copy(empty_ext4, tmp_path / "disk"))
    argv = [sys.executable, "-c", WRITER, str(system_disk.path), str(path)]
    process = await trio.lowlevel.open_process(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = await process.stdout.receive_some()  # the first record is on the disk
    with trio.move_on_after(random.Random(number).uniform(0, 1) * slower):
        while chunk := await process.stdout.receive_some():
            told += chunk
    process.kill()
    await process.wait()
    while chunk := await process.stdout.receive_some():
        told += chunk
    records = told.decode().split("\n")[:-1]  # the last may be cut short
    assert records == [str(n) for n in range(1, len(records) + 1)]
    async with Machine(with_system(system_disk, DriveConfig(path=path))) as machine:
        # Mounting replays the journal: whoever is killed leaves one.
        await sh(machine, "mount /dev/vdb /mnt; cp /mnt/log /tmp/log; umount /mnt")
        await sh(machine, "e2fsck -fn /dev/vdb")
        kept = (await sh(machine, "cat /tmp/log")).stdout.decode().split()
    assert len(kept) >= len(records)
    assert kept == [f"{n:07}" for n in range(1, len(kept) + 1)]
