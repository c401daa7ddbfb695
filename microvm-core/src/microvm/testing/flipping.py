"""A guest that rewrites its memory between any two steps of the host (time of check, time of use).

No second thread and no luck: the rewriting is done by a trace function, after every bytecode of
the code under test. What the code reads twice, it reads differently.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

    from microvm.memory import GuestMemory


@contextmanager
def flipping(memory: GuestMemory, address: int, variants: Sequence[bytes]) -> Iterator[None]:
    """While the body runs, make the bytes at `address` each of `variants` in turn.

    They change after each bytecode of every Python function called from the body, in this
    thread. What one built-in call reads (`struct.unpack_from`, a slice) it reads as a whole.

    Args:
        memory: The guest's RAM.
        address: Guest physical address.
        variants: What to write there; two or more, best of one length.
    """
    view = memory.slice(address, max(map(len, variants)))
    turns = itertools.cycle(variants)

    def flip(frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = True
        data = next(turns)
        view[: len(data)] = data
        return flip

    before = sys.gettrace()
    sys.settrace(flip)
    try:
        yield
    finally:
        sys.settrace(before)
