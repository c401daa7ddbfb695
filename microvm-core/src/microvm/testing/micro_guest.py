"""Guests of a few hundred bytes, to try a transport or a backend without an operating system.

A `MicroGuest` is assembled call by call into 32-bit x86 code, and comes out as an ELF image that
enters by the Xen PVH protocol (`XEN_ELFNOTE_PHYS32_ENTRY`), which QEMU's and our own loader know:
protected mode, flat segments, paging and interrupts off. `drive` adds what a virtio driver does
until DRIVER_OK (virtio 1.2, 3.1.1 Device Initialization), over virtio-mmio (4.2).

Only EBX (the device's registers), EAX and EDX are used; there is no stack.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from microvm.virtio.mmio import registers

if TYPE_CHECKING:
    from microvm.virtio.queue import QueueLayout

LOAD_ADDRESS: Final = 0x20_0000
"""Where the code is loaded and entered."""

# ELF-64 Object File Format 1.5, "File header" and "Program header table". The code within is of 32
# bits all the same: a PVH entry is.
_ELF_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4


class MicroGuest:
    """A program under construction, and data that is in memory when it starts."""

    def __init__(self) -> None:
        self._code = bytearray()
        self._data: list[tuple[int, bytes]] = []

    def data(self, address: int, content: bytes) -> None:
        """Have `content` at a guest physical address from the start. Pieces don't overlap."""
        self._data.append((address, content))

    def image(self) -> bytes:
        """The ELF image."""
        loads = [(LOAD_ADDRESS, bytes(self._code)), *self._data]
        note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", LOAD_ADDRESS)
        segments = [(_PT_LOAD, address, content) for address, content in loads]
        segments.append((_PT_NOTE, 0, note))
        position = _ELF_HEADER.size + _PROGRAM_HEADER.size * len(segments)
        headers, contents = b"", b""
        for kind, address, content in segments:
            offset, size = position + len(contents), len(content)
            headers += _PROGRAM_HEADER.pack(kind, 7, offset, address, address, size, size, 4)
            contents += content + bytes(-size % 4)
        ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        header = _ELF_HEADER.pack(
            *(ident, 2, 62, 1, LOAD_ADDRESS, _ELF_HEADER.size, 0, 0, _ELF_HEADER.size),
            *(_PROGRAM_HEADER.size, len(segments), 0, 0, 0),
        )
        return header + headers + contents

    # --- instructions --------------------------------------------------------------------------

    def find_device(self, device_id: int, slots: Sequence[int]) -> None:
        """Point EBX at the first virtio-mmio slot that holds a device of this type, or halt."""
        test = bytes.fromhex("817b08") + struct.pack("<I", device_id)  # cmp [ebx+8], id
        step = 5 + len(test) + 6
        for number, slot in enumerate(slots):
            self._code += b"\xbb" + struct.pack("<I", slot) + test  # mov ebx, slot
            behind = (len(slots) - number - 1) * step + 2
            self._code += b"\x0f\x84" + struct.pack("<i", behind)  # je behind
        self.halt()

    def write_register(self, offset: int, value: int) -> None:
        """Write 32 bits to a register of the device."""
        self._code += b"\xc7\x83" + struct.pack("<II", offset, value)  # mov [ebx+offset], value

    def wait_for_u16(self, address: int, value: int) -> None:
        """Spin until the memory at `address` holds `value`."""
        loop = b"\x66\x81\x3d" + struct.pack("<IH", address, value)  # cmp [address], value
        self._code += loop + b"\x75" + struct.pack("<b", -(len(loop) + 2))  # jne back

    def load_byte(self, address: int) -> None:
        """AL = the byte at a guest physical address."""
        self._code += b"\xa0" + struct.pack("<I", address)

    def add_register_byte(self, offset: int) -> None:
        """AL += the byte at an offset into the device's registers."""
        self._code += b"\x02\x83" + struct.pack("<I", offset)

    def out_al(self, port: int) -> None:
        """Write AL to an I/O port."""
        self._code += b"\xe6" + struct.pack("<B", port)

    def out_al_port(self, port: int) -> None:
        """Write AL to any I/O port; changes DX."""
        self._code += b"\x66\xba" + struct.pack("<H", port) + b"\xee"  # mov dx, port; out dx, al

    def out_port(self, port: int, value: int) -> None:
        """Write a byte to any I/O port; changes AL and DX."""
        self._code += b"\xb0" + struct.pack("<B", value)  # mov al, value
        self.out_al_port(port)

    def code(self, instructions: bytes) -> None:
        """Any other instructions, as 32-bit machine code."""
        self._code += instructions

    def halt(self) -> None:
        """Stop here: `hlt`, again after whatever may wake it."""
        self._code += b"\xf4\xeb\xfd"

    # --- virtio --------------------------------------------------------------------------------

    def drive(self, queues: Sequence[QueueLayout], features: int) -> None:
        """Take the device at EBX into use: these queues, these features, DRIVER_OK."""
        for status in (0, 1, 3):
            self.write_register(registers.STATUS, status)
        for half in (0, 1):
            self.write_register(registers.DRIVER_FEATURES_SEL, half)
            self.write_register(registers.DRIVER_FEATURES, features >> 32 * half & 0xFFFF_FFFF)
        self.write_register(registers.STATUS, 11)
        for index, layout in enumerate(queues):
            self.write_register(registers.QUEUE_SEL, index)
            self.write_register(registers.QUEUE_NUM, layout.size)
            for register, address in (
                (registers.QUEUE_DESC_LOW, layout.desc),
                (registers.QUEUE_DRIVER_LOW, layout.avail),
                (registers.QUEUE_DEVICE_LOW, layout.used),
            ):
                self.write_register(register, address & 0xFFFF_FFFF)
                self.write_register(register + 4, address >> 32)
            self.write_register(registers.QUEUE_READY, 1)
        self.write_register(registers.STATUS, 15)

    def notify(self, queue: int) -> None:
        """Ring a queue's doorbell."""
        self.write_register(registers.QUEUE_NOTIFY, queue)
