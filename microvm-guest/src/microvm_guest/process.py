"""`AgentProcess`: a command in the guest, as the agent's client sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm.abc import GuestProcess, RunResult, TtySize
from microvm.errors import GuestError, GuestGone, MicrovmError
from microvm_guest._replies import Reply
from microvm_guest._streams import (
    Collector,
    CommandOutput,
    CommandStdin,
    OutputSink,
    WindowKeeper,
)
from microvm_guest.protocol import Channel, ErrorCode, RunFlag

if TYPE_CHECKING:
    from microvm_guest._outbox import Outbox
    from microvm_guest.protocol import AgentConnection, AttachRequest, RunRequest
    from microvm_guest.protocol.events import CommandExited, CommandRefused, OutputReceived

_REMEDIES = {
    ErrorCode.BUSY: "Wait for other commands to end, then try again.",
    ErrorCode.RESOURCES: "Give the machine more memory (mem_size_mib), or run fewer commands.",
    ErrorCode.NOT_FOUND: "Give the program's full path, or put its directory on PATH.",
    ErrorCode.TTY: "The guest's kernel needs CONFIG_UNIX98_PTYS, and devpts on /dev/pts.",
}


class AgentProcess(GuestProcess):
    """A command and its streams.

    The `on_` methods are for the client's reader task, which never blocks in them.

    Args:
        connection: The sans-IO half; `request` has been run on its `stream`.
        outbox: Where frames go.
        stream: The command's stream id.
        request: What runs.
        max_output_bytes: With it, output is collected up to that bound; without it, `stdout`
            and `stderr` are streams for the user to read.
    """

    stdin: CommandStdin
    stdout: CommandOutput
    stderr: CommandOutput

    def __init__(
        self,
        connection: AgentConnection,
        outbox: Outbox,
        stream: int,
        request: RunRequest | AttachRequest,
        max_output_bytes: int | None = None,
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._stream = stream
        self._request = request
        self.started: Reply[int] = Reply()
        """The command's process id in the guest, once its program runs."""
        self._end: Reply[CommandExited] = Reply()
        self._forgotten = False
        self.skipped = 0
        """Of a job: bytes that its log no longer had, so far."""
        self.stdin = CommandStdin(connection, outbox, stream)
        self.stdout = CommandOutput(self._keeper(Channel.STDOUT))
        self.stderr = CommandOutput(self._keeper(Channel.STDERR))
        self._sinks: dict[Channel, OutputSink] = {
            Channel.STDOUT: self.stdout,
            Channel.STDERR: self.stderr,
        }
        self._collectors: list[Collector] = []
        if max_output_bytes is not None:
            self._collect(max_output_bytes)
        elif request.tty is not None or RunFlag.MERGE in request.flags:
            self.stderr.deliver(b"", eof=True)

    def _keeper(self, channel: Channel) -> WindowKeeper:
        def grant(length: int) -> None:
            self._outbox.put(self._connection.grant(self._stream, channel, length))

        return WindowKeeper(self._request.window, grant)

    def _collect(self, max_bytes: int) -> None:
        for channel in list(self._sinks):

            def overflow(name: str = channel.name.lower()) -> None:
                self._give_up(
                    GuestError(
                        f"{self._request.argv[0]!r} printed more than {max_bytes} bytes on {name} "
                        "and was killed.",
                        remedy="Raise max_output_bytes, or read its output as it comes with spawn.",
                    )
                )

            collector = Collector(self._keeper(channel), max_bytes, overflow)
            self._collectors.append(collector)
            self._sinks[channel] = collector

    # --- from the reader task -------------------------------------------------------------

    def on_started(self, pid: int) -> None:
        """The program runs."""
        self.started.set(pid)

    def on_output(self, event: OutputReceived) -> None:
        """The command has printed."""
        self._sinks[event.channel].deliver(event.data, event.eof)

    def on_skipped(self, length: int) -> None:
        """A job's log no longer had these bytes."""
        self.skipped += length

    def on_stdin_ready(self, closed: bool) -> None:
        """The command has read, or closed, its stdin."""
        if closed:
            self.stdin.end(GuestError("The command has closed its stdin."))
        self.stdin.more_credit()

    def on_exited(self, event: CommandExited) -> None:
        """The command has ended."""
        self.started.set(0)  # one that was let go before it ran says only that it ended
        self._end.set(event)
        self._break(GuestError("The command has ended."))

    def on_refused(self, event: CommandRefused) -> None:
        """The command could not be started."""
        remedy = _REMEDIES.get(ErrorCode(event.error)) if event.error in _CODES else None
        self.on_failure(
            GuestError(
                f"The guest did not start {self._request.argv[0]!r}: {event.text}", remedy=remedy
            )
        )

    def on_failure(self, error: MicrovmError) -> None:
        """The command can't be followed any further."""
        self.started.fail(error)
        self._end.fail(error)
        self._break(error)

    def _break(self, error: MicrovmError) -> None:
        self.stdin.end(error)
        for sink in self._sinks.values():
            sink.fail(error)

    def _give_up(self, error: MicrovmError) -> None:
        self._outbox.put(self._connection.close(self._stream, forget=self._forgotten))
        self.on_failure(error)

    # --- for the user ---------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether it has ended, or can't be followed any further."""
        return self._end.known

    async def wait(self) -> RunResult:
        """Wait for the end; see `GuestProcess.wait`.

        A command whose output nobody reads stops once a window of it is full, and does not end.
        """
        end = await self._end.wait()
        stdout, stderr = [c.result() for c in self._collectors] or [b"", b""]
        return RunResult(
            argv=self._request.argv,
            exit_code=end.exit_code,
            signal=end.signal,
            stdout=stdout,
            stderr=stderr,
        )

    async def send_signal(self, signal: int) -> None:
        """Send a signal to the command's process group; nothing happens if it has ended."""
        await self._outbox.room()
        self._outbox.put(self._connection.kill(self._stream, signal))

    async def resize(self, size: TtySize) -> None:
        """Tell the command's terminal its new size; without a terminal nothing happens."""
        await self._outbox.room()
        self._outbox.put(self._connection.resize(self._stream, size.rows, size.cols))

    def forget(self, forget: bool = True) -> None:
        """Of a job: when this is let go of, the agent is to kill it and keep nothing of it."""
        self._forgotten = forget

    def release(self) -> None:
        """Let go: kill it if it still runs, and take no more of its output. Needs no await.

        The agent kills before it serves any later request of this client.
        """
        if not self._end.known:
            self._give_up(GuestGone("The command was let go of and killed."))
        self.stdin.close()
        self.stdout.close()
        self.stderr.close()


_CODES = frozenset(int(code) for code in ErrorCode)
