"""What the tables tell a guest of its machine: a value that the engine makes and they read."""

from __future__ import annotations

from typing import NamedTuple

import attrs

from microvm.arch.x86_64 import layout

MAX_VCPU_COUNT = 254
"""The xAPIC's ids have 8 bits; 0xff is everyone's, and one is the I/O APIC's."""


class VirtioSlot(NamedTuple):
    """A virtio-mmio device's place."""

    base: int
    """Guest physical address of its registers, which take `layout.VIRTIO_MMIO_BYTES`."""
    gsi: int
    """Its interrupt, edge-triggered."""


@attrs.frozen(kw_only=True)
class BoardDescription:
    """The machine as its MP and ACPI tables describe it.

    Raises:
        ValueError: two devices share an address or an interrupt, or one is where none can be.
    """

    vcpu_count: int
    """APIC ids are 0 to `vcpu_count` - 1; number 0 boots."""
    virtio: tuple[VirtioSlot, ...] = ()
    """In the order in which the guest is to find them."""
    has_com1: bool = True

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.vcpu_count <= MAX_VCPU_COUNT:
            raise ValueError(f"A board has 1 to {MAX_VCPU_COUNT} vCPUs, not {self.vcpu_count}.")
        taken = {layout.COM1_GSI} if self.has_com1 else set()
        pages = set()
        for base, gsi in self.virtio:
            if base % layout.VIRTIO_MMIO_BYTES or not layout.HOLE_START <= base < layout.IO_APIC:
                raise ValueError(f"A device's registers can't lie at {base:#x}.")
            if base in pages:
                raise ValueError(f"Two devices have their registers at {base:#x}.")
            if not 0 <= gsi < layout.IO_APIC_PINS:
                raise ValueError(f"The I/O APIC has no pin {gsi}.")
            if gsi in taken:
                raise ValueError(f"Two devices have interrupt {gsi}.")
            pages.add(base)
            taken.add(gsi)

    @property
    def io_apic_id(self) -> int:
        """An APIC id that no vCPU has."""
        return self.vcpu_count
