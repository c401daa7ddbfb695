"""What ``--json`` prints of a machine that serves: one object a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microvm._machine import Machine
    from microvm.forwards.forward import Forward


def tell(event: str, **facts: Any) -> None:
    """Print one event."""
    print(json.dumps({"event": event, **facts}), flush=True)


def tell_starting(machine: Machine) -> None:
    """It is being started, on this backend."""
    tell("starting", backend=machine.backend.name, reason=machine.backend.reason)


def say_ready(machine: Machine, proxy: Forward, *, as_json: bool) -> None:
    """Its proxy is here: an event, or the bare address for who reads no JSON."""
    if as_json:
        timing = {phase: round(ms, 3) for phase, ms in machine.timing.items()}
        tell("ready", listen=str(proxy.address), timing=timing)
    else:
        print(proxy.address, flush=True)
