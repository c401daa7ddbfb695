"""What the parsers of boot files share: how they read, and how they refuse. Pure."""

from __future__ import annotations

from collections.abc import Callable

ReadAt = Callable[[int, int], bytes]
"""`read_at(offset, length)`: that many bytes, fewer where the file ends."""

HEAD_BYTES = 4096
"""How much of a kernel image the `microvm_boot_protocol` hook sees."""


class UnusableFile(ValueError):
    """A boot file can't be used. The message goes on from "can't be used:", without a full stop."""

    remedy: str | None = None
    """A sentence, or None where what kind of file is wanted says all."""


class KernelFormatError(UnusableFile):
    """These bytes are not a kernel that can be booted on x86_64; the message says why."""


class DoesNotFit(UnusableFile):
    """The guest has too little memory for it, or none where it must lie."""

    remedy = "Give the guest more memory."


class CmdlineTooLong(UnusableFile):
    """The kernel has no room for the machine's command line."""

    remedy = "Take words away from it."
