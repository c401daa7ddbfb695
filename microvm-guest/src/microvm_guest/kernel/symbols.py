"""Kernel symbols that are not the same from 6.1 on, so that one set of fragments serves all.

Found by comparing the fragments with the Kconfig files of 6.1 and 6.12. A symbol that a kernel
does not know is dropped from what is wanted before the result is checked; anything else missing
is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from microvm_guest.kernel.kconfig import Config

Version = tuple[int, int]


@attrs.frozen
class Gone:
    """A symbol that ended with a release."""

    since: Version
    """The first release without it."""
    successor: str | None = None
    """What it is called from then on; None: it is always on, or the feature is gone."""


GONE: Mapping[str, Gone] = {
    # Only the command line's random.trust_cpu and random.trust_bootloader are left, both on.
    "RANDOM_TRUST_CPU": Gone((6, 2)),
    "RANDOM_TRUST_BOOTLOADER": Gone((6, 2)),
    # Lost its prompt: on with every Intel or AMD kernel. Without an initrd entry it does nothing.
    "MICROCODE": Gone((6, 6)),
    # Turned over into BASE_SMALL, which is off unless asked for.
    "BASE_FULL": Gone((6, 10)),
}


def adapt(wanted: Config, version: Version) -> dict[str, str]:
    """`wanted` in the words of kernel `version`."""
    adapted: dict[str, str] = {}
    for symbol, value in wanted.items():
        gone = GONE.get(symbol)
        if gone is None or version < gone.since:
            adapted[symbol] = value
        elif gone.successor is not None:
            adapted[gone.successor] = value
    return adapted
