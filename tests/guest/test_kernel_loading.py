"""Our own kernel goes into guest memory as the image has it, by each of its entries."""

import struct
from pathlib import Path

import pytest

from microvm._plugin_manager import installed_plugins
from microvm.abc import MachinePlan
from microvm.arch.x86_64 import layout
from microvm.arch.x86_64.registers import RegisterValue
from microvm.boot.files import kernel_head
from microvm.boot.identify import identify_kernel
from microvm.boot.setup_header import SetupHeader
from microvm.config import MachineConfig
from microvm.errors import ImageError
from microvm.memory import GuestMemory
from microvm.timeline import BootTimeline
from microvm_guest.image import default_image

pytestmark = pytest.mark.linux_guest

MIB = 1 << 20


def load(kernel: Path, memory: GuestMemory) -> dict[str, RegisterValue]:
    plan = MachinePlan(
        config=MachineConfig(),
        kernel=kernel,
        initrd=default_image().initrd,
        cmdline="console=ttyS0",
        devices=(),
        timeline=BootTimeline(),
    )
    protocol = installed_plugins().boot_protocol(kernel_head(kernel), "x86_64")
    assert protocol is not None
    return dict(protocol.load(plan, memory))


def test_the_bzimage_lies_at_its_preferred_address_with_its_header_in_the_zero_page() -> None:
    memory = GuestMemory.anonymous(64 * MIB)
    kernel, initrd = default_image().compressed_kernel, default_image().initrd
    registers = load(kernel, memory)
    data = kernel.read_bytes()
    header = identify_kernel(lambda at, length: data[at : at + length], len(data))
    assert isinstance(header, SetupHeader)
    start = header.pref_address
    assert registers["rip"] == start + 0x200
    protected = data[header.setup_bytes :][: header.protected_bytes]
    assert memory.slice(start, len(protected)) == protected
    page = memory.read(layout.ZERO_PAGE, 0x1000)
    assert page[0x1F1:0x210] == data[0x1F1:0x210]
    assert page[0x210] == 0xFF
    assert page[0x22C : header.end] == data[0x22C : header.end]
    assert not any(page[header.end : 0x2D0])
    ramdisk, size = struct.unpack_from("<II", page, 0x218)
    assert memory.slice(ramdisk, size) == initrd.read_bytes()
    assert ramdisk >= start + header.init_size


def test_vmlinux_is_entered_by_its_pvh_note_and_lies_where_its_segments_say() -> None:
    memory = GuestMemory.anonymous(64 * MIB)
    registers = load(default_image().kernel, memory)
    assert registers["rbx"] == layout.PVH_START_INFO
    assert registers["efer"] == 0
    entry = registers["rip"]
    assert isinstance(entry, int)
    assert entry > 16 * MIB
    assert any(memory.read(entry, 64))


@pytest.mark.parametrize("name", ["kernel", "compressed_kernel"])
def test_a_guest_too_small_for_our_kernel_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(ImageError, match=r"does not fit into 24 MiB") as caught:
        load(getattr(default_image(), name), GuestMemory.anonymous(24 * MIB))
    assert caught.value.remedy == "Give the guest more memory."
