"""kill -9 of the process that serves a disk: what was flushed is there, and the lock is not.

It shows what is lost with a process, that is, what had never left it: the host's page cache lives
on. For power cuts see `test_blk_crash.py`.
"""

import random
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from microvm.config import DriveConfig
from microvm_devices.blk.raw_disk import open_raw_disk

SECTORS = 256

WRITER = """
import random, struct, sys, zlib
import trio
from microvm.config import DriveConfig
from microvm_devices.blk.device import BlkDevice
from microvm_devices.blk.layout import S_OK, T_OUT
from microvm_devices.blk.raw_disk import open_raw_disk
from microvm_devices.blk.testing import GuestBlk

async def main():
    rng = random.Random(sys.argv[2])
    device, guest = BlkDevice(DriveConfig(path=sys.argv[1]), open_raw_disk), GuestBlk()
    serial = 0
    async with guest.attached(device):
        print("start", flush=True)
        while True:
            heads, batch = [], []
            for sector in rng.sample(range(256), rng.randint(1, 20)):
                serial += 1
                body = struct.pack("<QQ", sector, serial) * 31 + bytes(12)
                body += zlib.crc32(body).to_bytes(4, "little")
                heads.append(guest.submit(T_OUT, sector, body))
                batch.append(f"{sector}:{serial}")
            for head in heads:
                assert (await guest.answer(head)).status == S_OK
            assert await guest.flush() == S_OK
            print("stable", *batch, flush=True)

trio.run(main)
"""


def kill_once(image: Path, seed: int) -> int:
    """Let the writer write for a while, kill it, look; returns how many records it had stable."""
    image.write_bytes(bytes(SECTORS * 512))
    delay_s = random.Random(seed).uniform(0, 0.3)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, image, str(seed)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "start\n"
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
        told = writer.stdout.read()
    stable: dict[int, int] = {}
    for line in told.splitlines(keepends=True):
        if line.startswith("stable") and line.endswith("\n"):
            for sector, serial in re.findall(r"(\d+):(\d+)", line):
                stable[int(sector)] = int(serial)
    # The lock went with the process; nothing is to be cleaned up.
    disk = open_raw_disk(DriveConfig(path=image))
    content = bytearray(SECTORS * 512)
    assert disk.read([memoryview(content)], 0, len(content)) == len(content)
    disk.close()
    for sector in range(SECTORS):
        record = bytes(content[sector * 512 : sector * 512 + 512])
        if record == bytes(512):
            assert sector not in stable, f"sector {sector} is lost"
            continue
        assert zlib.crc32(record[:508]) == int.from_bytes(record[508:], "little"), "half a sector"
        where, serial = (int.from_bytes(record[at : at + 8], "little") for at in (0, 8))
        assert where == sector
        assert serial >= stable.get(sector, 0), f"sector {sector} is older than what was stable"
    return len(stable)


def test_what_was_flushed_outlives_the_process(tmp_path: Path) -> None:
    assert sum(kill_once(tmp_path / "disk.img", seed) for seed in range(4))


@pytest.mark.slow
def test_what_was_flushed_outlives_the_process_fifty_times(tmp_path: Path) -> None:
    assert sum(kill_once(tmp_path / "disk.img", seed) for seed in range(100, 150))
