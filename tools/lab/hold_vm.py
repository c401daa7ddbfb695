"""A program of 250 bytes that holds a VM open for as long as the lab is up, as an ELF image.

Why: with the first VM and with the last one's end, KVM patches the kernel's scheduler (a static
key for its preempt notifiers; for local APICs, those in KVM itself), by way of an `int3` that
other CPUs may meet. Seen, after 10 to 140 machines: both CPUs in `__schedule` and `exc_int3` in
turn, for ever, as if QEMU 7.2 with a thread for each vCPU went on executing the `int3` that it
once translated. While a VM with a local APIC is there all the time, nothing is patched; 500
machines in a row then went well.
"""

from __future__ import annotations

import struct
from typing import Final

LOAD: Final = 0x40_0000
HEADERS: Final = 64 + 56

CODE: Final = bytes.fromhex(
    "b802000000"  # mov eax, 2                  open
    "488d3d40000000"  # lea rdi, [rip + path]
    "be02000000"  # mov esi, 2                  O_RDWR
    "0f05"  # syscall
    "89c7"  # mov edi, eax
    "b810000000"  # mov eax, 16                 ioctl
    "be01ae0000"  # mov esi, 0xae01             KVM_CREATE_VM
    "31d2"  # xor edx, edx
    "0f05"  # syscall
    "89c3"  # mov ebx, eax
    "89df"  # mov edi, ebx
    "b810000000"  # mov eax, 16
    "be60ae0000"  # mov esi, 0xae60             KVM_CREATE_IRQCHIP
    "0f05"  # syscall
    "89df"  # mov edi, ebx
    "b810000000"  # mov eax, 16
    "be41ae0000"  # mov esi, 0xae41             KVM_CREATE_VCPU
    "31d2"  # xor edx, edx                      number 0
    "0f05"  # syscall
    "b822000000"  # forever: mov eax, 34        pause
    "0f05"  # syscall
    "ebf7"  # jmp forever
)
PATH: Final = b"/dev/kvm\0"


def program() -> bytes:
    """The ELF image: one segment with everything in it (ELF-64 Object File Format 1.5)."""
    size = HEADERS + len(CODE) + len(PATH)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, 62, 1, LOAD + HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, LOAD, LOAD, size, size, 0x1000)
    return header + segment + CODE + PATH
