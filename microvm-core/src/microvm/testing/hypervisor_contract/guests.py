"""The guests: code bytes with what they say, in 16-bit real mode unless the name has another.

Each begins at `CODE`, with DS, ES and SS at 0, interrupts off and a stack. `DEVICE` is where no
memory is, also reached as segment `DEVICE_SEGMENT`.
"""

from __future__ import annotations

from typing import Final

CODE: Final = 0x1000
DATA: Final = 0x2000
"""Memory that the guest reads and writes."""
STACK: Final = 0x8000
MEMORY_BYTES: Final = 0x1_0000
DEVICE: Final = 0x2_0000
DEVICE_SEGMENT: Final = DEVICE >> 4
OTHER_CPU_CODE: Final = 0x3000
"""Where `START_OTHER_CPU` starts the other one: SIPI vector 3."""
PORT: Final = 0xE9
DONE: Final = 0xEA
"""Port that a guest writes to when it has done what it is for."""

SPIN: Final = bytes.fromhex(
    "eb fe"  #                         1: jmp 1b
)
HALT: Final = bytes.fromhex(
    "f4"  #                            1: hlt
    "eb fd"  #                            jmp 1b
)
HALT_WITH_INTERRUPTS: Final = bytes.fromhex(
    "fb"  #                               sti
    "f4"  #                            1: hlt
    "eb fd"  #                            jmp 1b
)
TRIPLE_FAULT_32BIT: Final = bytes.fromhex(
    "0f 0b"  #                            ud2                    with an empty IDT
)
COUNT: Final = bytes.fromhex(
    "e6 e9"  #                         1: out PORT, al
    "fe c0"  #                            inc al
    "eb fa"  #                            jmp 1b
)
ECHO: Final = bytes.fromhex(
    "e4 e9"  #                         1: in al, PORT
    "e6 ea"  #                            out DONE, al
    "eb fa"  #                            jmp 1b
)

WRITE_PORTS: Final = bytes.fromhex(
    "b0 11"  #                            mov al, 0x11
    "e6 e9"  #                            out PORT, al
    "b8 22 11"  #                         mov ax, 0x1122
    "e7 e9"  #                            out PORT, ax
    "66 b8 44 33 22 11"  #                mov eax, 0x11223344
    "66 e7 e9"  #                         out PORT, eax
    "ba f8 ff"  #                         mov dx, 0xfff8
    "ee"  #                               out dx, al
)
READ_PORTS: Final = bytes.fromhex(
    "e4 e9"  #                            in al, PORT
    "a2 00 20"  #                         mov [DATA], al
    "e5 e9"  #                            in ax, PORT
    "a3 02 20"  #                         mov [DATA + 2], ax
    "66 e5 e9"  #                         in eax, PORT
    "66 a3 04 20"  #                      mov [DATA + 4], eax
    "e6 ea"  #                            out DONE, al
)
WRITE_DEVICE: Final = bytes.fromhex(
    "b8 00 20"  #                         mov ax, DEVICE_SEGMENT
    "8e d8"  #                            mov ds, ax
    "c6 06 11 00 11"  #                   mov byte [0x11], 0x11
    "c7 06 22 00 22 11"  #                mov word [0x22], 0x1122
    "66 c7 06 44 00 44 33 22 11"  #       mov dword [0x44], 0x11223344
    "e6 ea"  #                            out DONE, al
)
READ_DEVICE: Final = bytes.fromhex(
    "b8 00 20"  #                         mov ax, DEVICE_SEGMENT
    "8e d8"  #                            mov ds, ax
    "a0 11 00"  #                         mov al, [0x11]
    "36 a2 00 20"  #                      mov ss:[DATA], al
    "a1 22 00"  #                         mov ax, [0x22]
    "36 a3 02 20"  #                      mov ss:[DATA + 2], ax
    "66 a1 44 00"  #                      mov eax, [0x44]
    "66 36 a3 04 20"  #                   mov ss:[DATA + 4], eax
    "e6 ea"  #                            out DONE, al
)
DEVICE_64BIT: Final = bytes.fromhex(
    "48 b8 88 77 66 55 44 33 22 11"  #    mov rax, 0x1122334455667788
    "be 00 00 02 00"  #                   mov esi, DEVICE
    "48 89 06"  #                         mov [rsi], rax
    "48 8b 06"  #                         mov rax, [rsi]
    "bf 00 20 00 00"  #                   mov edi, DATA
    "48 89 07"  #                         mov [rdi], rax
    "e6 ea"  #                            out DONE, al
)
LOOK_AT_DEVICE: Final = bytes.fromhex(
    "b8 00 20"  #                         mov ax, DEVICE_SEGMENT
    "8e d8"  #                            mov ds, ax
    "a0 00 00"  #                      1: mov al, [0]
    "e6 e9"  #                            out PORT, al
    "a2 01 00"  #                         mov [1], al
    "eb f6"  #                            jmp 1b
)
STRING_COUNT: Final = 16
WRITE_STRINGS: Final = bytes.fromhex(
    "fc"  #                               cld
    "ba e9 00"  #                         mov dx, PORT
    "be 00 20"  #                         mov si, DATA
    "b9 10 00"  #                         mov cx, STRING_COUNT
    "f3 6e"  #                            rep outsb
    "b9 10 00"  #                         mov cx, STRING_COUNT
    "f3 6f"  #                            rep outsw
    "e6 ea"  #                            out DONE, al
)
READ_STRINGS: Final = bytes.fromhex(
    "fc"  #                               cld
    "ba e9 00"  #                         mov dx, PORT
    "bf 00 20"  #                         mov di, DATA
    "b9 10 00"  #                         mov cx, STRING_COUNT
    "f3 6c"  #                            rep insb
    "b9 10 00"  #                         mov cx, STRING_COUNT
    "f3 6d"  #                            rep insw
    "e6 ea"  #                            out DONE, al
)
RING: Final = bytes.fromhex(
    "b8 00 20"  #                         mov ax, DEVICE_SEGMENT
    "8e d8"  #                            mov ds, ax
    "66 c7 06 50 00 03 00 00 00"  #       mov dword [0x50], 3
    "66 c7 06 50 00 04 00 00 00"  #       mov dword [0x50], 4
    "c7 06 50 00 03 00"  #                mov word [0x50], 3
    "66 c7 06 54 00 03 00 00 00"  #       mov dword [0x54], 3
    "e6 ea"  #                            out DONE, al
)

MASTER_VECTOR: Final = 0x20
"""Interrupt vector of the PIC's line 0, from `INTERRUPTS` on; line 8 is 8 further."""
HANDLER_5: Final = CODE + 0x100
HANDLER_11: Final = CODE + 0x200
INTERRUPTS: Final = bytes.fromhex(
    # 8259A: ICW1 to ICW4 of both, then the masks: open are 2 (the cascade), 5 and 11.
    "b0 11  e6 20  e6 a0"  #              edge-triggered, cascaded, with ICW4
    "b0 20  e6 21"  #                     vectors 0x20 to 0x27
    "b0 28  e6 a1"  #                     vectors 0x28 to 0x2f
    "b0 04  e6 21"  #                     a slave at line 2
    "b0 02  e6 a1"  #                     slave number 2
    "b0 01  e6 21  e6 a1"  #              8086 mode
    "b0 db  e6 21"  #
    "b0 f7  e6 a1"  #
    "fb"  #                               sti
    "b0 00  e6 e9"  #                     mov al, 0; out PORT, al   ready
    "f4"  #                            1: hlt
    "eb fd"  #                            jmp 1b
)
INTERRUPT_5: Final = bytes.fromhex(
    "b0 05  e6 e9"  #                     mov al, 5; out PORT, al
    "b0 20  e6 20"  #                     end of interrupt
    "cf"  #                               iret
)
INTERRUPT_11: Final = bytes.fromhex(
    "b0 0b  e6 e9"  #                     mov al, 11; out PORT, al
    "b0 20  e6 a0  e6 20"  #              end of interrupt, at both
    "cf"  #                               iret
)

START_OTHER_CPU_32BIT: Final = bytes.fromhex(
    # The local APIC (Intel SDM volume 3A, 11.4.3 and 11.6.1): enable, then INIT and SIPI to APIC 1.
    "bf 00 00 e0 fe"  #                   mov edi, 0xfee00000
    "c7 87 f0 00 00 00 ff 01 00 00"  #    mov dword [edi + 0xf0], 0x1ff
    "c7 87 10 03 00 00 00 00 00 01"  #    mov dword [edi + 0x310], 1 << 24
    "c7 87 00 03 00 00 00 45 00 00"  #    mov dword [edi + 0x300], 0x4500    INIT
    "c7 87 00 03 00 00 03 46 00 00"  #    mov dword [edi + 0x300], 0x4603    SIPI, 0x3000
    "b0 00  e6 e9"  #                     mov al, 0; out PORT, al
    "f4"  #                            1: hlt
    "eb fd"  #                            jmp 1b
)
OTHER_CPU: Final = bytes.fromhex(
    "b0 01  e6 e9"  #                     mov al, 1; out PORT, al
    "f4"  #                            1: hlt
    "eb fd"  #                            jmp 1b
)
