"""How often a vCPU left the guest, by kind and address: where a boot's time goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

MAX_PLACES: Final = 1024
"""A boot touches some fifty; a guest that touches every address must not fill our memory."""

Place = tuple[str, int | None]
"""The exit's kind, and its port or address where it has one."""
ELSEWHERE: Final[Place] = ("elsewhere", None)


class ExitCounts:
    """One vCPU's counts: added to by its thread, read by any."""

    __slots__ = ("by_place",)

    def __init__(self) -> None:
        self.by_place: dict[Place, int] = {ELSEWHERE: 0}
        """For the exit path to count in places that `add` has taken."""

    def add(self, kind: str, address: int | None = None) -> None:
        """Count one."""
        counts = self.by_place
        place = (kind, address)
        if place in counts:
            counts[place] += 1
        elif len(counts) < MAX_PLACES:
            counts[place] = 1
        else:
            counts[ELSEWHERE] += 1

    def snapshot(self) -> dict[Place, int]:
        """The counts now."""
        return self.by_place.copy()


def merged(counts: Iterable[ExitCounts]) -> Mapping[str, int]:
    """Counts of several vCPUs, the most frequent first, by a text such as ``pio-write 0x3f8``.

    They are `MAX_PLACES` at most, as one vCPU's are.
    """
    total: Counter[Place] = Counter()
    for one in counts:
        total.update(one.snapshot())
    if len(total) > MAX_PLACES:
        elsewhere = total.pop(ELSEWHERE)
        kept = Counter(dict(total.most_common(MAX_PLACES - 1)))
        kept[ELSEWHERE] = elsewhere + total.total() - kept.total()
        total = kept
    return {
        kind if address is None else f"{kind} {address:#x}": count
        for (kind, address), count in total.most_common()
        if count
    }
