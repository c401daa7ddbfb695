"""The registers by which a PrimeCell says what it is; an Arm bus driver looks at them first.

Source: Arm, PrimeCell UART (PL011) Technical Reference Manual, DDI 0183, 3.3.14 to 3.3.21.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_PERIPH_ID: Final = 0xFE0
_PCELL_ID: Final = 0xFF0
_PCELL: Final = b"\x0d\xf0\x05\xb1"


def identification(
    *, part: int, designer: int, revision: int, configuration: int
) -> Mapping[int, int]:
    """PeriphID0 to 3 and PCellID0 to 3, by offset: eight bits each, four bytes apart.

    Args:
        part: Twelve bits, such as 0x011.
        designer: Eight bits; Arm is 0x41.
        revision: Four bits.
        configuration: Eight bits.
    """
    value = configuration << 24 | revision << 20 | designer << 12 | part
    found = {_PERIPH_ID + 4 * i: value >> 8 * i & 0xFF for i in range(4)}
    found.update({_PCELL_ID + 4 * i: byte for i, byte in enumerate(_PCELL)})
    return found
