"""What a kernel's last words on the console say about the machine's end. Pure.

Linux prints these at KERN_EMERG, so that ``quiet`` does not silence them. A program in the guest
can print them too; all it achieves is a wrong word about its own machine's end, and where we act
on a sign (`halting`, `hung`), we end a machine that its guest could have ended anyway, and look at
the CPUs first where that tells.
"""

from __future__ import annotations

from typing import Final

import attrs

from microvm.console import visible_text

MAX_LINE_BYTES: Final = 512

PANIC: Final = b"Kernel panic - not syncing"
PANIC_END: Final = b"---[ end Kernel panic"
"""Printed when the kernel stays where it is: ``panic=0`` was given, or rebooting failed."""
HALTING: Final = (b"reboot: System halted", b"reboot: Power down")
"""Without ACPI a kernel can't switch the machine off. It says one of these and halts its CPUs."""
RESTARTING: Final = b"reboot: Restarting system"


@attrs.define(kw_only=True)
class Signs:
    """What has been seen so far."""

    panic: str | None = None
    """The panic's line, in visible characters."""
    hung: bool = False
    """The kernel panicked and does not restart."""
    halting: bool = False
    restarting: bool = False


class SignReader:
    """Reads signs from a console, in chunks of any size; only the first panic counts."""

    def __init__(self) -> None:
        self.signs = Signs()
        self._line = b""

    def feed(self, data: bytes | bytearray) -> None:
        """Take the next bytes of the console."""
        buffer = self._line + data
        end = buffer.rfind(b"\n") + 1
        self._read(buffer[:end])
        # A line's sign stands near its beginning; the rest of an endless one is not kept.
        self._line = bytes(buffer[end : end + MAX_LINE_BYTES])

    def finish(self) -> None:
        """The console has ended: what stands there of a line is all of it."""
        self._read(self._line)
        self._line = b""

    def _read(self, lines: bytes) -> None:
        signs = self.signs
        signs.hung = signs.hung or PANIC_END in lines
        signs.halting = signs.halting or any(mark in lines for mark in HALTING)
        signs.restarting = signs.restarting or RESTARTING in lines
        if signs.panic is None and (at := lines.find(PANIC)) >= 0:
            line = lines[at : at + MAX_LINE_BYTES].partition(b"\n")[0]
            signs.panic = visible_text(line.rstrip(b"\r"))
