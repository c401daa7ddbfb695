"""The kernel's command line as it lies in guest memory. Pure."""

from __future__ import annotations

from microvm.boot.reading import CmdlineTooLong
from microvm.errors import ConfigError


def cmdline_bytes(line: str, limit: int) -> bytes:
    """The line with its NUL byte.

    Args:
        line: The words.
        limit: How many bytes the kernel takes, the NUL byte not counted.

    Raises:
        ConfigError: it is not one line of printable ASCII: a NUL byte would cut off the words
            behind it.
        CmdlineTooLong: the kernel would cut it off.
    """
    if not line.isascii() or not all(c.isprintable() for c in line):
        raise ConfigError(
            f"The kernel command line must be one line of printable ASCII, not {line!r}."
        )
    if len(line) > limit:
        raise CmdlineTooLong(
            f"it takes a command line of {limit} bytes, and this machine's has {len(line)}"
        )
    return line.encode("ascii") + b"\0"
