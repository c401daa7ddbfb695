"""What a worker process runs; `process.WorkerProcess` starts it.

Up to `trio.run` nothing needs trio: the platform is launched first, and trio is imported while its
own process comes up.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NoReturn

from microvm._groups import only_error
from microvm.errors import MicrovmError
from microvm.worker.guardian import Guardian
from microvm.worker.wire import Wire

if TYPE_CHECKING:
    import trio

    from microvm.worker.build import Built
    from microvm.worker.frames import Message
    from microvm.worker.logs import LogForwarder

LAST_WORDS_WITHIN_S: Final = 0.5
EXIT_FAILED: Final = 1


def main(control: int, parent: int) -> NoReturn:
    """Build and run one machine, as told over the socket `control` by the process `parent`."""
    code = EXIT_FAILED
    try:
        guardian = Guardian(control, parent)
        guardian.start()
        wire = Wire(socket.socket(fileno=control))
        with contextlib.suppress(EOFError):
            _work(wire, guardian)
        wire.flush_within(LAST_WORDS_WITHIN_S)
        code = 0
    except BaseExceptionGroup as group:
        traceback.print_exception(only_error(group))
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    # Every context has been left. Taking the interpreter apart would only take time.
    os._exit(code)


def _work(wire: Wire, guardian: Guardian) -> None:
    """Raises EOFError when the caller is gone before it has said what it wants."""
    # Importing makes garbage collection run again and again over what is there to stay.
    gc.disable()
    messages = _messages(wire)
    first = next(messages)
    from microvm.worker.build import build
    from microvm.worker.logs import forward_logs
    from microvm.worker.order import Order

    order = Order.from_json(first["plan"])
    logs = forward_logs(wire, order.log_level)
    with contextlib.ExitStack() as stack:
        try:
            from microvm.plugins import installed_plugins

            built = build(order, installed_plugins())
            stack.enter_context(built.platform.prelaunch(built.plan))
        except MicrovmError as error:
            _refuse(wire, messages, error)
        else:
            _run(built, wire, guardian, logs)


def _messages(wire: Wire) -> Iterator[Message]:
    """What the caller says, waited for without a loop. Raises EOFError at the end."""
    while True:
        try:
            yield wire.receive_now().message
        except BlockingIOError:
            wire.wait_readable(None)


def _refuse(wire: Wire, messages: Iterator[Message], error: MicrovmError) -> None:
    """Nothing can be started: say so when asked to start, and wait for the end."""
    from microvm.worker.values import error_to_json

    for message in messages:
        if message["do"] == "start":
            wire.post({"id": message["id"], "error": error_to_json(error)})


def _run(built: Built, wire: Wire, guardian: Guardian, logs: LogForwarder) -> None:
    import trio

    from microvm.worker.service import Service

    async def serve() -> None:
        token = trio.lowlevel.current_trio_token()
        logs.attach(token)
        await Service(built, wire).run(lambda scope: end_with(token, scope))

    def end_with(token: trio.lowlevel.TrioToken, scope: trio.CancelScope) -> None:
        def leave() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)

        guardian.on_abandoned(leave)
        signal.signal(signal.SIGTERM, lambda number, frame: leave())

    trio.run(serve)
