"""`WorkerMachine`: a machine in a worker process, as a `RunningMachine` of the caller's.

Three tasks live as long as the worker: one reads what it says, one sends what its socket did not
take at once, one keeps the last of what it prints. They are shielded from the caller's
cancellation and ended by `finish`, which has them to see the worker out.

`console_tail` and the counters can't await; they ask the worker and block until it answers, which
it does in a fraction of a millisecond, or for `SNAPSHOT_WITHIN_S` at most. A worker that owes an
answer is not asked again.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import trio

from microvm.abc import RunningMachine
from microvm.console import ConsoleRing
from microvm.errors import (
    BackendCrashed,
    ConfigError,
    GuestGone,
    MicrovmError,
    WorkerProtocolError,
)
from microvm.outcome import MachineOutcome, OutcomeReason
from microvm.worker.channels import stream_over
from microvm.worker.frames import encode
from microvm.worker.process import describe_end
from microvm.worker.values import (
    MAX_TEXT,
    Snapshot,
    error_from_json,
    facts_from_json,
    marks_from_json,
    outcome_from_json,
    snapshot_from_json,
    text,
    wrong,
)
from microvm.worker.wire import CHUNK_BYTES, Received, Wire

if TYPE_CHECKING:
    from microvm.abc.device import Fact
    from microvm.metrics import DeviceCounters
    from microvm.timeline import BootTimeline
    from microvm.worker.channels import WorkerChannels
    from microvm.worker.process import WorkerProcess

log = logging.getLogger("microvm.worker")

SNAPSHOT_WITHIN_S: Final = 0.25
"""A worker whose interpreter is held by something else answers after some 5 ms."""

KILL_WITHIN_S: Final = 2.0
"""How long a worker may take to end its machine when asked to; then it is ended itself."""

LEAVE_WITHIN_S: Final = 3.0
"""How long it may take to leave its contexts, from the last that it hears of us."""

LAST_WORDS_WITHIN_S: Final = 1.0
"""For the end of its standard error; a child that it forked may hold that open."""

DIE_WITHIN_S: Final = 2.0
"""From SIGKILL to the end of its socket; it takes a millisecond."""

STDERR_BYTES: Final = 16 * 1024
STDERR_LINES: Final = 5
"""What an outcome shows of it."""

MAX_LOGGER: Final = 80
MAX_LOG_RECORDS: Final = 10_000
"""Of one worker; a guest that can make a device complain must not fill the caller's disk."""


class _Answer:
    """What one request waits for."""

    def __init__(self) -> None:
        self.come = trio.Event()
        self.received: Received | None = None
        self.error: MicrovmError | None = None


class WorkerMachine(RunningMachine):
    """Made, run and finished by `WorkerPlatform.start`."""

    def __init__(self, process: WorkerProcess, wire: Wire, channels: WorkerChannels) -> None:
        self._process = process
        self._wire = wire
        self._channels = channels
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Answer] = {}
        self._ignored: set[int] = set()
        """Requests whose answers nobody waits for."""
        self._snapshot_owed: int | None = None
        self._snapshot = Snapshot()
        self._stderr = ConsoleRing(STDERR_BYTES)
        self._stderr_read = trio.Event()
        self._tasks = trio.CancelScope(shield=True)
        self._asked_to_end = False
        self._paused = False
        self._failure: WorkerProtocolError | None = None
        self._outcome: MachineOutcome | None = None
        self._ended = trio.Event()
        """The machine has."""
        self._gone = trio.Event()
        """The worker has."""
        self._log_records = 0

    # --- RunningMachine ------------------------------------------------------------------

    async def wait(self) -> MachineOutcome:
        """As `RunningMachine.wait`."""
        await self._ended.wait()
        assert self._outcome is not None
        return self._outcome

    async def kill(self) -> None:
        """As `RunningMachine.kill`: by the worker, or with it when it does not answer."""
        self._asked_to_end = True
        if not self._ended.is_set():
            self._ask_for("kill")
        with trio.move_on_after(KILL_WITHIN_S):
            await self._ended.wait()
        if not self._ended.is_set():
            await self._put_down()

    async def pause(self) -> None:
        """As `RunningMachine.pause`.

        Raises:
            GuestGone: the machine has ended.
        """
        try:
            (await self.request("pause")).drop()
        except trio.Cancelled:
            # Too late, perhaps: its answer may be under way.
            if not self._paused:
                self._ask_for("resume")
            raise
        self._paused = True

    async def resume(self) -> None:
        """As `RunningMachine.resume`.

        Raises:
            GuestGone: the machine has ended.
        """
        (await self.request("resume")).drop()
        self._paused = False

    async def press_power_button(self) -> None:
        """As `RunningMachine.press_power_button`.

        Raises:
            GuestGone: the machine has ended.
        """
        (await self.request("press")).drop()

    def console_tail(self) -> tuple[str, ...]:
        """As `RunningMachine.console_tail`."""
        return self._look().console_tail

    async def open_console(self) -> trio.SocketStream:
        """As `RunningMachine.open_console`: the socket is the worker's own."""
        return stream_over(await self.request("console"))

    async def open_device_stream(self, device: str, name: str) -> trio.SocketStream:
        """As `RunningMachine.open_device_stream`: the socket is the worker's own."""
        return stream_over(await self.request("device-stream", device=device, name=name))

    async def device_command(
        self, device: str, what: str, arguments: Mapping[str, Any]
    ) -> Mapping[str, Fact]:
        """As `RunningMachine.device_command`."""
        asked = {"device": device, "name": what, "arguments": dict(arguments)}
        try:
            encode({"do": "device-command", "id": 0, **asked})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"A worker process can't be asked so: {error}.") from None
        received = await self.request("device-command", **asked)
        received.drop()
        return facts_from_json(received.message.get("ok"))

    def console_counters(self) -> Mapping[str, int]:
        """As `RunningMachine.console_counters`."""
        return self._look().console_counters

    def exit_counts(self) -> Mapping[str, int]:
        """As `RunningMachine.exit_counts`."""
        return self._look().exit_counts

    def device_counters(self) -> DeviceCounters:
        """As `RunningMachine.device_counters`."""
        return self._look().device_counters

    # --- for the platform ----------------------------------------------------------------

    async def run(self) -> None:
        """Hear the worker until it has died; then the outcome stands. See `finish`."""
        with self._tasks:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wire.flush_forever)
                nursery.start_soon(self._read_stderr)
                await self._read()
                # What it has not said by now it never will.
                self._process.kill()
                await self._process.reap()
                with trio.move_on_after(LAST_WORDS_WITHIN_S):
                    await self._stderr_read.wait()
                nursery.cancel_scope.cancel()
        self._conclude()

    async def started(self, timeline: BootTimeline) -> None:
        """Tell the worker who listens, have it start the machine, and wait until it has.

        Raises:
            MicrovmError: as the worker's platform raised it.
            BackendCrashed: the worker ended.
        """
        self._channels.join(self)
        received = await self.request("start")
        received.drop()
        answer = received.message.get("ok")
        if not isinstance(answer, dict):
            raise wrong("an answer to start that is none")
        for phase, at_ns in marks_from_json(answer.get("marks")):
            timeline.mark(phase, at_ns=at_ns)

    async def finish(self) -> None:
        """See the worker out, or put it down when it takes its time. The caller shields."""
        self._asked_to_end = True
        self._wire.finish_writing()
        with trio.move_on_after(LEAVE_WITHIN_S):
            await self._gone.wait()
        if not self._gone.is_set():
            log.warning("The worker process %d did not leave; it is killed.", self._process.pid)
            await self._put_down()

    async def _put_down(self) -> None:
        self._process.kill()
        with trio.move_on_after(DIE_WITHIN_S):
            await self._gone.wait()
        # Somebody else may hold its end of the socket.
        self._tasks.cancel()
        await self._gone.wait()

    # --- WorkerLink ----------------------------------------------------------------------

    async def request(self, what: str, **arguments: Any) -> Received:
        """Ask the worker, and wait for its answer; what comes with it is the caller's.

        Raises:
            GuestGone: the worker has ended.
            MicrovmError: as it answered.
        """
        if self._gone.is_set():
            raise GuestGone("The machine has ended.")
        number = next(self._numbers)
        answer = self._asked[number] = _Answer()
        self.tell(what, id=number, **arguments)
        try:
            await answer.come.wait()
        except BaseException:
            if self._asked.pop(number, None) is not None:
                self._ignored.add(number)
                self.tell("cancel", id=number)
            elif answer.received is not None:
                answer.received.drop()
            raise
        if answer.error is not None:
            raise answer.error
        assert answer.received is not None
        return answer.received

    def _ask_for(self, what: str) -> None:
        """Ask, and let nobody wait for the answer."""
        number = next(self._numbers)
        self._ignored.add(number)
        self.tell(what, id=number)

    def tell(self, what: str, **arguments: Any) -> None:
        """Say something to the worker that it does not answer, or not to us."""
        self._wire.post({"do": what, **arguments})

    def _look(self) -> Snapshot:
        """The machine now, or when it was last seen."""
        if self._ended.is_set() or self._snapshot_owed is not None:
            return self._snapshot
        number = self._snapshot_owed = next(self._numbers)
        self.tell("snapshot", id=number)
        until = time.monotonic() + SNAPSHOT_WITHIN_S
        while self._snapshot_owed == number and (left := until - time.monotonic()) > 0:
            try:
                self._take(self._wire.receive_now())
            except BlockingIOError:
                self._wire.wait_readable(left)
            except EOFError:
                break  # the reader will find the same
            except WorkerProtocolError as error:
                self._fail(error)
                break
        return self._snapshot

    # --- tasks ---------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                self._take(await self._wire.receive())
        except EOFError:
            return
        except WorkerProtocolError as error:
            self._fail(error)

    async def _read_stderr(self) -> None:
        stderr = trio.socket.from_stdlib_socket(self._process.stderr)
        while data := await _receive(stderr):
            self._stderr.feed(data)
        self._stderr_read.set()

    # --- what the worker says ------------------------------------------------------------

    def _fail(self, error: WorkerProtocolError) -> None:
        """It breaks the rules: hear no more of it."""
        if self._failure is None:
            self._failure = error
        self._wire.abort()

    def _take(self, received: Received) -> None:
        """Act on a message.

        Raises:
            WorkerProtocolError: it breaks the rules.
        """
        try:
            if "event" in received.message:
                self._take_event(received)
            else:
                self._take_answer(received)
        except BaseException:
            received.drop()
            raise

    def _take_event(self, received: Received) -> None:
        message = received.message
        match message["event"]:
            case "accepted":
                self._channels.accepted(message.get("listener"), received)
            case "listener_failed":
                error = error_from_json(message.get("error"))
                self._channels.failed(message.get("listener"), error)
            case "outcome":
                outcome = outcome_from_json(message.get("outcome"))
                self._snapshot = snapshot_from_json(message.get("snapshot"))
                self._end_with(outcome)
            case "log":
                self._log(message)
            case _:
                raise wrong("an event that is none")
        received.drop()

    def _take_answer(self, received: Received) -> None:
        message = received.message
        number = message.get("id")
        if not isinstance(number, int):
            raise wrong("a frame that is neither an answer nor an event")
        if number in self._asked:
            answer = self._asked[number]
            if "error" in message:
                answer.error = error_from_json(message["error"])
                received.drop()
            else:
                answer.received = received
            del self._asked[number]
            answer.come.set()
            return
        received.drop()
        if number == self._snapshot_owed:
            self._snapshot = snapshot_from_json(message.get("ok"))
            self._snapshot_owed = None
        elif number in self._ignored:
            self._ignored.remove(number)
        else:
            raise wrong("an answer to no question")

    def _log(self, message: dict[str, Any]) -> None:
        level = message.get("level")
        if not isinstance(level, int):
            raise wrong("a log record that is none")
        level = min(max(level, logging.DEBUG), logging.CRITICAL)
        self._log_records += 1
        if self._log_records < MAX_LOG_RECORDS and log.isEnabledFor(level):
            name = text(message.get("logger"), MAX_LOGGER)
            log.log(level, "%s: %s", name, text(message.get("text"), MAX_TEXT))
        elif self._log_records == MAX_LOG_RECORDS:
            log.warning("The worker process %d has said enough.", self._process.pid)

    # --- the end -------------------------------------------------------------------------

    def _end_with(self, outcome: MachineOutcome) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._ended.set()

    def _conclude(self) -> None:
        """The worker has gone: whoever still waits for something of it is told."""
        detail = self._how_it_ended()
        crashed = not self._asked_to_end or self._failure is not None
        if self._outcome is not None and crashed:
            log.warning("After its machine had ended: %s", detail)
        self._end_with(
            MachineOutcome(
                reason=OutcomeReason.CRASHED if crashed else OutcomeReason.STOPPED,
                detail=detail if crashed else "The host stopped it.",
                console_tail=self._snapshot.console_tail,
            )
        )
        for answer in self._asked.values():
            answer.error = self._failure or BackendCrashed(detail)
            answer.come.set()
        self._asked.clear()
        self._channels.machine_ended()
        self._gone.set()

    def _how_it_ended(self) -> str:
        if self._failure is not None:
            return self._failure.message
        how = describe_end(self._process.returncode)
        words = " | ".join(self._stderr.tail(STDERR_LINES))
        return f"The worker process {how}." + (f" Its last words: {words}" if words else "")


async def _receive(sock: trio.socket.SocketType) -> bytes:
    """The next bytes; none once the worker has gone."""
    try:
        return await sock.recv(CHUNK_BYTES)
    except ConnectionResetError:
        return b""
