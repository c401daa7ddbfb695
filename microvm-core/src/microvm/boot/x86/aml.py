"""The few encodings of ACPI Machine Language that our DSDT is made of. Pure.

Source: ACPI 6.5, 20.2 AML Grammar Definition; 6.4 Resource Data Types for ACPI.
"""

from __future__ import annotations

import struct
from typing import Final

ROOT: Final = "\\"


def integer(value: int) -> bytes:
    """In the shortest form (20.2.3 Data Objects Encoding)."""
    if value in (0, 1):
        return bytes([value])  # ZeroOp, OneOp
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} has more than 64 bits.")


def string(text: str) -> bytes:
    """An ASCII string with its NUL byte."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def name_string(name: str) -> bytes:
    r"""One segment of up to four characters, below the root if it begins with ``\``."""
    segment = name.removeprefix(ROOT)
    if not 1 <= len(segment) <= 4:
        raise ValueError(f"{name!r} is no name of one segment.")
    prefix = ROOT if name.startswith(ROOT) else ""
    return (prefix + segment.ljust(4, "_")).encode("ascii")


def package_length(content: int) -> bytes:
    """PkgLength (20.2.4) of so many bytes of content; it counts itself too."""
    if content + 1 <= 0x3F:
        return bytes([content + 1])
    for more in (1, 2, 3):
        total = content + 1 + more
        if total < 1 << 4 + 8 * more:
            return bytes([more << 6 | total & 0xF]) + (total >> 4).to_bytes(more, "little")
    raise ValueError(f"AML has no packages of {content} bytes.")


def _sized(opcode: bytes, content: bytes) -> bytes:
    return opcode + package_length(len(content)) + content


def named(name: str, value: bytes) -> bytes:
    """``Name (name, value)``."""
    return b"\x08" + name_string(name) + value


def scope(name: str, *terms: bytes) -> bytes:
    """``Scope (name) {terms}``."""
    return _sized(b"\x10", name_string(name) + b"".join(terms))


def device(name: str, *terms: bytes) -> bytes:
    """``Device (name) {terms}``."""
    return _sized(b"\x5b\x82", name_string(name) + b"".join(terms))


def package(*elements: bytes) -> bytes:
    """``Package () {elements}``."""
    return _sized(b"\x12", bytes([len(elements)]) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    """``Buffer () {data}``."""
    return _sized(b"\x11", integer(len(data)) + data)


def eisa_id(text: str) -> bytes:
    """``EisaId (text)``: three letters and four hex digits in 32 bits (19.6.36)."""
    letters, digits = text[:3], text[3:]
    packed = 0
    for letter in letters:
        packed = packed << 5 | ord(letter) - 0x40
    return b"\x0c" + (packed << 16 | int(digits, 16)).to_bytes(4, "big")


# --- resources (6.4) -------------------------------------------------------------------------


def resource_template(*descriptors: bytes) -> bytes:
    """``ResourceTemplate () {descriptors}``; the end tag's checksum 0 stands for "not used"."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def memory32_fixed(base: int, length: int) -> bytes:
    """``Memory32Fixed (ReadWrite, base, length)`` (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, 1, base, length)


def io(base: int, length: int) -> bytes:
    """``IO (Decode16, base, base, 1, length)`` (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, length)


def interrupt(gsi: int) -> bytes:
    """``Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {gsi}`` (6.4.3.6)."""
    consumer, edge = 1 << 0, 1 << 1
    return struct.pack("<BHBBI", 0x89, 6, consumer | edge, 1, gsi)
