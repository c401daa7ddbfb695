"""The checksum that ACPI and MP tables share. Pure."""

from __future__ import annotations


def with_checksum(table: bytes, at: int) -> bytes:
    """The table, whose byte at `at` is 0, with that byte such that all sum up to 0 modulo 256."""
    return table[:at] + bytes([-sum(table) & 0xFF]) + table[at + 1 :]
