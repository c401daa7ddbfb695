"""What ``--json`` prints of a machine that serves: one object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TextIO

from microvm.cli._backlog import Weight
from microvm.cli._line_writer import LineWriter

if TYPE_CHECKING:
    from microvm._machine import Machine
    from microvm.forwards.forward import Forward

_WEIGHTS: Final = {"connections": Weight.FIGURE, "vpn": Weight.STATE}
"""Of events that come again and again."""


class EventStream(LineWriter):
    """A block within which events can be told. A reader that does not read misses some of them.

    Args:
        stream: Where to; None where a program was started without it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream, _left_out)

    def tell(self, event: str, **facts: Any) -> None:
        """Have one event written. Waits for nobody."""
        self.put(_line(event, facts), kind=event, weight=_WEIGHTS.get(event, Weight.ONCE))

    def tell_starting(self, machine: Machine) -> None:
        """It is being started, on this backend."""
        self.tell("starting", backend=machine.backend.name, reason=machine.backend.reason)


def _line(event: str, facts: Mapping[str, Any]) -> str:
    return json.dumps({"event": event, **facts})


def _left_out(counts: Mapping[str, int]) -> str:
    return _line("left_out", {"counts": dict(counts)})


def say_ready(machine: Machine, proxy: Forward, events: EventStream | None) -> None:
    """Its proxy is here: an event, or the bare address for who reads no JSON."""
    if events is None:
        print(proxy.address, flush=True)
    else:
        timing = {phase: round(ms, 3) for phase, ms in machine.timing.items()}
        events.tell("ready", listen=str(proxy.address), timing=timing)
