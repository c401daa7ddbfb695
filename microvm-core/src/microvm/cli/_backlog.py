"""Lines that wait until somebody reads them: bounded, and it is told what was left out.

What is left out first is what the next line of its kind replaces anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from enum import IntEnum

import attrs


class Weight(IntEnum):
    """What is left out before what."""

    FIGURE = 0
    """How much there is of something: the last one says all."""
    STATE = 1
    """What something is now."""
    ONCE = 2
    """The beginning and the end, and errors."""


@attrs.frozen
class _Line:
    text: str
    kind: str
    weight: Weight


class Backlog:
    """At most so many lines, in the order in which they came.

    Args:
        limit: How many are kept.
        left_out: Makes a line of how many of each kind are not.
    """

    def __init__(self, limit: int, left_out: Callable[[Mapping[str, int]], str]) -> None:
        self._limit = limit
        self._say_left_out = left_out
        self._lines: list[_Line] = []
        self._left_out: Counter[str] = Counter()

    def put(self, text: str, *, kind: str, weight: Weight) -> None:
        """Append a line; of too many, the oldest of the least weight is left out."""
        self._lines.append(_Line(text, kind, weight))
        if len(self._lines) > self._limit:
            least = min(self._lines, key=lambda line: line.weight)
            self._lines.remove(least)
            self._left_out[least.kind] += 1

    def take(self) -> str | None:
        """The next line, or what was left out before it; None where nothing waits."""
        if self._left_out:
            counts, self._left_out = self._left_out, Counter()
            return self._say_left_out(counts)
        return self._lines.pop(0).text if self._lines else None
