"""What QEMU's monitor says of the CPUs of a guest that does not go on. Pure."""

from __future__ import annotations

import re
from typing import Final

_FLAGS = re.compile(r"\b[RE]FL=([0-9a-f]+).*?\bHLT=([01])")
_INTERRUPTS_ENABLED: Final = 1 << 9
"""EFLAGS.IF."""


def all_halted(registers: str) -> bool:
    """Whether every CPU waits for an interrupt while it takes none: nothing but a reset follows.

    Args:
        registers: What ``info registers -a`` printed.
    """
    cpus = _FLAGS.findall(registers)
    return bool(cpus) and all(
        halted == "1" and not int(flags, 16) & _INTERRUPTS_ENABLED for flags, halted in cpus
    )
