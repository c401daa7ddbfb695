"""`Service`: the worker's trio side. It runs the machine, and does what it is told of it.

One task reads. What needs no waiting is done there, in order, so that a listener is there when the
next frame is looked at; the rest has a task for each request. The end of the wire cancels all of
it, the machine's contexts too, as it would in the caller's process.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import trio

from microvm._groups import only_error
from microvm._machine_devices import device_called
from microvm.errors import GuestGone, MicrovmError
from microvm.worker.channels import ACCEPT_AHEAD
from microvm.worker.relay import descriptor_of
from microvm.worker.values import (
    Snapshot,
    error_to_json,
    facts_to_json,
    outcome_to_json,
    snapshot_to_json,
)

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream, Listener

    from microvm.abc import GuestChannels, RunningMachine, VirtioDevice
    from microvm.worker.build import Built
    from microvm.worker.frames import Message
    from microvm.worker.wire import Wire

log = logging.getLogger("microvm.worker")

LAST_LOOK_WITHIN_S: Final = 0.5
"""For a machine whose context was left to say how it ended; it knows by then."""

Answer = tuple[Any, int | None]
"""What an answer says, and the descriptor that goes with it."""


class _Accepting:
    """A listener, and the task that takes its connections."""

    def __init__(self, listener: Listener[HalfCloseableStream]) -> None:
        self.listener = listener
        self.scope = trio.CancelScope()
        self.room = trio.Semaphore(ACCEPT_AHEAD)


class Service:
    """Runs what was built, for the process at the other end of the wire."""

    def __init__(self, built: Built, wire: Wire) -> None:
        self._built = built
        self._wire = wire
        self._running: RunningMachine | None = None
        self._channels: GuestChannels | None = None
        self._channels_known = trio.Event()
        self._start: int | None = None
        self._start_asked = trio.Event()
        self._requests: dict[int, trio.CancelScope] = {}
        self._early: list[tuple[int, int]] = []
        """Listeners asked for before there were channels: number and port."""
        self._accepting: dict[int, _Accepting] = {}
        self._nursery: trio.Nursery | None = None
        self._told_outcome = False

    async def run(self, on_running: Callable[[trio.CancelScope], None]) -> None:
        """Serve until the wire ends.

        Args:
            on_running: Is given the scope that ends it.

        Raises whatever the machine raises that is no `MicrovmError` of its start.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            on_running(nursery.cancel_scope)
            nursery.start_soon(self._wire.flush_forever)
            nursery.start_soon(self._read)
            await self._start_asked.wait()
            await self._live()

    async def _live(self) -> None:
        """The machine's life. Returns never; cancelled, or an error, ends it."""
        assert self._start is not None
        plan, platform = self._built.plan, self._built.platform
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_callback(self._say_how_it_ended)
                for attached in plan.devices:
                    await stack.enter_async_context(attached.device.lifespan())
                if self._built.channels is not None:
                    self._open(self._built.channels)
                running = await stack.enter_async_context(platform.start(plan))
                self._running = running
                if self._channels is None:
                    self._open(running.channels)
                self._answer(self._start, {"marks": self._built.timeline.marks})
                # Off while all was imported that stays. What a guest has us make does not.
                gc.freeze()
                gc.enable()
                await running.wait()
                await self._say_how_it_ended()
                await trio.sleep_forever()
        except BaseExceptionGroup as group:
            await self._refuse(only_error(group))
        except MicrovmError as error:
            await self._refuse(error)

    async def _refuse(self, error: BaseException) -> None:
        """The start failed, and the caller is told why; a failure later on is a crash."""
        if self._running is not None or not isinstance(error, MicrovmError):
            raise error
        assert self._start is not None
        self._wire.post({"id": self._start, "error": error_to_json(error)})
        await trio.sleep_forever()

    async def _say_how_it_ended(self) -> None:
        running = self._running
        if running is None or self._told_outcome:
            return
        with trio.move_on_after(LAST_LOOK_WITHIN_S) as scope:
            scope.shield = True
            outcome = await running.wait()
            self._told_outcome = True
            self._wire.post(
                {
                    "event": "outcome",
                    "outcome": outcome_to_json(outcome),
                    "snapshot": snapshot_to_json(self._snapshot(running)),
                }
            )

    def _snapshot(self, running: RunningMachine) -> Snapshot:
        return Snapshot(
            console_tail=running.console_tail(),
            exit_counts=running.exit_counts(),
            console_counters=running.console_counters(),
            device_counters=running.device_counters(),
        )

    # --- what the caller says ------------------------------------------------------------

    async def _read(self) -> None:
        assert self._nursery is not None
        try:
            while True:
                await self._take((await self._wire.receive()).message)
        except EOFError:
            self._nursery.cancel_scope.cancel()

    async def _take(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "start":
                self._start = message["id"]
                self._start_asked.set()
            case "listen":
                self._listen(message["listener"], message["port"])
            case "more":
                accepting = self._accepting.get(message["listener"])
                if accepting is not None:
                    accepting.room.release()
            case "unlisten":
                await self._unlisten(message["listener"])
            case "cancel":
                scope = self._requests.get(message["id"])
                if scope is not None:
                    scope.cancel()
            case "snapshot":
                running = self._running
                now = Snapshot() if running is None else self._snapshot(running)
                self._answer(message["id"], snapshot_to_json(now))
            case "connect":
                self._serve(message["id"], lambda: self._connect(message["port"]))
            case "console":
                self._serve(message["id"], self._open_console)
            case "device-stream":
                self._serve(message["id"], lambda: self._open_device_stream(message))
            case "device-command":
                self._serve(message["id"], lambda: self._device_command(message))
            case "pause" | "resume" | "press" | "kill" as what:
                self._serve(message["id"], lambda: self._command(what))
            case unknown:
                raise ValueError(unknown)

    def _answer(self, number: int, value: Any, descriptor: int | None = None) -> None:
        self._wire.post({"id": number, "ok": value}, descriptor)

    def _serve(self, number: int, act: Callable[[], Awaitable[Answer]]) -> None:
        """Answer a request from a task of its own, which `cancel` ends."""
        assert self._nursery is not None
        scope = self._requests[number] = trio.CancelScope()
        self._nursery.start_soon(self._serving, number, scope, act)

    async def _serving(
        self, number: int, scope: trio.CancelScope, act: Callable[[], Awaitable[Answer]]
    ) -> None:
        try:
            with scope:
                self._answer(number, *await act())
        except MicrovmError as error:
            self._wire.post({"id": number, "error": error_to_json(error)})
        except Exception as error:
            log.exception("A request failed in the worker process.")
            self._wire.post({"id": number, "error": error_to_json(error)})
        finally:
            del self._requests[number]
        if scope.cancelled_caught:
            gone = GuestGone("It was cancelled.")  # nobody waits for these words
            self._wire.post({"id": number, "error": error_to_json(gone)})

    async def _command(self, what: str) -> Answer:
        running = self._running
        if running is None:
            raise GuestGone("The machine does not run.")
        match what:
            case "pause":
                await running.pause()
            case "resume":
                await running.resume()
            case "press":
                await running.press_power_button()
            case "kill":
                await running.kill()
        return None, None

    # --- streams -------------------------------------------------------------------------

    async def _open_console(self) -> Answer:
        running = self._running
        if running is None:
            raise GuestGone("The machine does not run.")
        stream = await running.open_console()
        assert self._nursery is not None
        return None, descriptor_of(stream, self._nursery)

    async def _open_device_stream(self, message: Message) -> Answer:
        stream = await self._device(message).open_stream(message["name"])
        assert self._nursery is not None
        return None, descriptor_of(stream, self._nursery)

    async def _device_command(self, message: Message) -> Answer:
        device = self._device(message)
        facts = await device.command(message["name"], message["arguments"])
        return facts_to_json(facts), None

    def _device(self, message: Message) -> VirtioDevice:
        return device_called(message["device"], self._built.plan.devices)

    def _open(self, channels: GuestChannels | None) -> None:
        self._channels = channels
        self._channels_known.set()
        early, self._early = self._early, []
        for number, port in early:
            self._listen(number, port)

    async def _connect(self, port: int) -> Answer:
        await self._channels_known.wait()
        if self._channels is None:
            raise GuestGone("The machine has no channel to guest ports.")
        stream = await self._channels.connect(port)
        assert self._nursery is not None
        return None, descriptor_of(stream, self._nursery)

    def _listen(self, number: int, port: int) -> None:
        if not self._channels_known.is_set():
            self._early.append((number, port))
            return
        try:
            if self._channels is None:
                raise GuestGone("The machine has no channel to guest ports.")
            listener = self._channels.listen(port)
        except MicrovmError as error:
            self._listener_failed(number, error)
            return
        assert self._nursery is not None
        accepting = self._accepting[number] = _Accepting(listener)
        self._nursery.start_soon(self._accept, number, accepting)

    async def _accept(self, number: int, accepting: _Accepting) -> None:
        assert self._nursery is not None
        with accepting.scope:
            try:
                while True:
                    await accepting.room.acquire()
                    stream = await accepting.listener.accept()
                    descriptor = descriptor_of(stream, self._nursery)
                    event = {"event": "accepted", "listener": number}
                    self._wire.post(event, descriptor)
            except trio.ClosedResourceError:
                return
            except MicrovmError as error:
                self._listener_failed(number, error)

    def _listener_failed(self, number: int, error: MicrovmError) -> None:
        self._wire.post(
            {"event": "listener_failed", "listener": number, "error": error_to_json(error)}
        )

    async def _unlisten(self, number: int) -> None:
        self._early = [early for early in self._early if early[0] != number]
        accepting = self._accepting.pop(number, None)
        if accepting is not None:
            accepting.scope.cancel()
            await trio.aclose_forcefully(accepting.listener)
