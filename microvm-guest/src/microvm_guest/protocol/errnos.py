"""What the guest's error numbers say. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

ENOENT: Final = 2
_TEXTS: Final = MappingProxyType(
    {
        1: "Operation not permitted",
        2: "No such file or directory",
        5: "Input/output error",
        12: "Out of memory",
        13: "Permission denied",
        16: "It is in use, or changed meanwhile",
        17: "It is there already",
        18: "Another file system is mounted there",
        20: "Not a directory",
        21: "It is a directory",
        22: "That can't be done with it",
        23: "Too many open files in the guest",
        24: "Too many open files",
        26: "It is a program that runs",
        27: "File too large",
        28: "No space left in the guest",
        30: "Read-only file system",
        36: "The name is too long",
        39: "The directory is not empty",
        40: "Too many symlinks, or too deep",
        71: "The guest's agent does not know this request",
        122: "Disk quota exceeded",
    }
)
"""Linux's own numbers (asm-generic/errno.h): the guest's, wherever the host is."""


def file_error_text(number: int) -> str:
    """What a guest's errno says of one of its files."""
    return _TEXTS.get(number, f"error {number} of the guest's")
