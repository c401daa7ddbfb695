"""A disk's promises through a pause that its back end sees as QEMU shows it (virtio 1.2, 5.2.6.2).

The driver has made its writes stable when complete, and is told nothing of a pause: if the field
`writeback` were forgotten there, what it counts on would not be so.
"""

import sys
from collections.abc import Sequence

import pytest

from microvm.config import DriveConfig
from microvm.testing.vhost_user_frontend import VhostUserFrontEnd, front_end
from microvm.virtio.pause_notice import PauseNotice
from microvm_devices.blk import layout
from microvm_devices.blk.testing import MemoryDisk

from .drives import device_on

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd and eventfd are Linux's")


class SettlingDisk(MemoryDisk):
    """Knows whether all that was written is stable."""

    stable = True

    def write(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        self.stable = False
        super().write(views, offset, length)

    def flush(self) -> None:
        super().flush()
        self.stable = True


async def write(vmm: VhostUserFrontEnd) -> None:
    """Write one sector, and wait for the answer."""
    (queue,) = vmm.queues
    queue.want_interrupt()
    queue.add([layout.HEADER.pack(layout.T_OUT, 0, 0), bytes(512)], [1])
    queue.kick()
    while not (used := queue.used()):
        await queue.irq.wait()
    assert used[0].data == bytes([layout.S_OK])


@pytest.mark.parametrize("start", [0x100, 0xFFFF])
async def test_write_through_outlives_a_pause_wherever_the_ring_stands(start: int) -> None:
    disk, pause = SettlingDisk(), PauseNotice()
    device = device_on(disk, DriveConfig(path="/a/disk"))
    async with device.lifespan(), front_end(device, queues=1, pause=pause) as vmm:
        vmm.features |= layout.F_FLUSH | layout.F_CONFIG_WCE
        vmm.reset()
        vmm.bases = [start]
        vmm.queues[0].begin_at(start)
        await vmm.start()
        device.write_config(layout.WRITEBACK_OFFSET, b"\0")
        await write(vmm)
        assert disk.stable
        pause.announce()
        await vmm.stop()
        pause.withdraw()
        await vmm.start()
        await write(vmm)
        assert disk.stable, "The write was reported, and a power cut would lose it."
