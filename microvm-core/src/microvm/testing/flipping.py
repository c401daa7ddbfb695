"""A guest that acts between any two steps of the host: time of check, time of use, lost wake-ups.

No second thread and no luck: a trace function lets the guest act after every bytecode of the
code under test. A built-in call (`struct.unpack_from`, a store to a memoryview) is one step.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

    from microvm.memory import GuestMemory


@contextmanager
def acting_between_steps(action: Callable[[int], object]) -> Iterator[None]:
    """Call `action` with the step's number after each bytecode of functions called in the body.

    Only in this thread, and only for functions that the body calls: not for the body itself.
    What `action` does is not interrupted in turn (CPython does not trace a trace function).
    """
    steps = itertools.count()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            action(next(steps))
        return trace

    before = sys.gettrace()
    # Python 3.12 asks at settrace whether any frame wants opcodes, so one must want them by then.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def flipping(memory: GuestMemory, address: int, variants: Sequence[bytes]) -> Iterator[None]:
    """While the body runs, make the bytes at `address` each of `variants` in turn.

    Args:
        memory: The guest's RAM.
        address: Guest physical address.
        variants: What to write there; two or more, best of one length.
    """
    view = memory.slice(address, max(map(len, variants)))
    turns = itertools.cycle(variants)

    def flip(step: int) -> None:
        data = next(turns)
        view[: len(data)] = data

    with acting_between_steps(flip):
        yield
