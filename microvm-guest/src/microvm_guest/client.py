"""`AgentClient`: the guest as its user holds it, over one stream to the agent.

Two tasks serve the stream: one reads and hands each event to whom it concerns, without ever
waiting for anybody; one sends what the others have queued. When the stream ends, or the agent
breaks the protocol, everybody who waits is told at once.

Long, since each verb of `Guest` is here with its errors; what each does is in files of its own.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from microvm.abc import Guest, GuestProcess, RunResult, TtySize
from microvm.abc.jobs import DEFAULT_LOG_BYTES
from microvm.console import visible_lines
from microvm.errors import (
    CommandFailed,
    GuestError,
    GuestGone,
    GuestProtocolError,
    MicrovmError,
)
from microvm_guest import forwarding
from microvm_guest._outbox import Outbox
from microvm_guest._replies import Reply, again
from microvm_guest._tasks import serving
from microvm_guest.jobs import AgentJob, job_status
from microvm_guest.process import AgentProcess
from microvm_guest.protocol import (
    NEED_DATA,
    AgentConnection,
    AttachRequest,
    Event,
    JobRecord,
    Notice,
    RunFlag,
    RunRequest,
)
from microvm_guest.protocol import events as e

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream, Stream

    from microvm.abc import GuestChannels, GuestFiles, JobStatus
    from microvm.forwards.addresses import TcpAddress, UnixAddress
    from microvm.forwards.forward import Handle
    from microvm.outbound import OutboundPolicy
    from microvm_guest.socks5.through import GuestSocks5

RECEIVE_BYTES = 256 * 1024
CLOCK_GOOD_S = 0.02
"""How old the host's word of its time may be for the guest's clock to be right."""
CLOCK_TRIES = 5
STDERR_SHOWN = 2000
"""Characters of stderr that `CommandFailed` quotes, from its end."""


@asynccontextmanager
async def open_client(stream: Stream) -> AsyncIterator[AgentClient]:
    """An `AgentClient` over `stream`, served while the block lasts; the stream is closed after.

    The body's errors come out as they are, not in a group.
    """
    async with serving() as nursery:
        client = AgentClient(stream)
        nursery.start_soon(client.serve)
        yield client


class AgentClient(Guest):
    """A guest reached through its agent.

    Somebody must run `serve` for as long as it is used; `open_client` does. All methods are for
    that trio thread. Requests may be made at once: they follow the host's HELLO on the wire and
    do not wait for the agent's.

    Args:
        stream: A fresh connection to an agent, either way around. The client closes it.
        channels: To the same guest, for forwards; none are to be had without.
    """

    def __init__(self, stream: Stream, channels: GuestChannels | None = None) -> None:
        self._stream = stream
        self._channels = channels
        self._connection = AgentConnection()
        self._outbox = Outbox()
        self._processes: dict[int, AgentProcess] = {}
        self._hello: Reply[e.HelloReceived] = Reply()
        self._pongs: dict[int, Reply[None]] = {}
        self._statuses: deque[Reply[Mapping[str, int | float | str]]] = deque()
        self._jobs: deque[Reply[tuple[JobRecord, ...]]] = deque()
        self._notices: dict[Notice, Reply[None]] = {}
        self._goodbye: Reply[None] = Reply()
        self._going_down = False
        self._through: GuestSocks5 | None = None
        self._failure: MicrovmError | None = None
        self._outbox.put(self._connection.greet(time.time_ns()))

    # --- the two tasks --------------------------------------------------------------------

    async def serve(self) -> None:
        """Serve the stream until it ends or this is cancelled. Raises nothing but that."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._outbox.pump, self._stream)
                self._fail(await self._read())
                nursery.cancel_scope.cancel()
        finally:
            self._fail(GuestGone("The connection to the guest's agent was closed by the host."))
            await trio.aclose_forcefully(self._stream)

    async def _read(self) -> MicrovmError:
        """Read to the end, and say what kind of end it was."""
        try:
            while data := await self._stream.receive_some(RECEIVE_BYTES):
                self._connection.receive_data(data)
                while (event := self._connection.next_event()) is not NEED_DATA:
                    assert not isinstance(event, e.NeedData)
                    if isinstance(event, e.ConnectionRefused):
                        return GuestProtocolError(
                            f"The guest's agent refused the connection: {event.text}"
                        )
                    self._dispatch(event)
        except GuestProtocolError as error:
            return error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            gone = GuestGone("The connection to the guest's agent broke.")
            gone.__cause__ = error
            return gone
        return GuestGone("The guest's agent ended the connection.")

    def _dispatch(self, event: Event) -> None:
        match event:
            case e.OutputReceived(stream=stream):
                self._processes[stream].on_output(event)
            case e.OutputSkipped(stream=stream, length=length):
                self._processes[stream].on_skipped(length)
            case e.StdinReady(stream=stream, closed=closed):
                self._processes[stream].on_stdin_ready(closed)
            case e.CommandStarted(stream=stream, pid=pid):
                self._processes[stream].on_started(pid)
            case e.CommandExited(stream=stream):
                self._processes.pop(stream).on_exited(event)
            case e.CommandRefused(stream=stream):
                self._processes.pop(stream).on_refused(event)
            case e.PongReceived(token=token):
                self._pongs.pop(token).set(None)
            case e.StatusReceived(status=status):
                self._statuses.popleft().set(status)
            case e.JobsReceived(jobs=jobs):
                self._jobs.popleft().set(jobs)
            case e.NoticeTaken(notice=notice):
                self._notices.pop(notice).set(None)
            case e.ShutdownAgreed():
                self._goodbye.set(None)
            case e.HelloReceived():
                self._hello.set(event)
                for process in self._processes.values():
                    process.on_stdin_ready(closed=False)
            case _:
                raise AssertionError(event)

    def _fail(self, error: MicrovmError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self._outbox.close()
        self._hello.fail(error)
        for process in self._processes.values():
            process.on_failure(error)
        for pong in self._pongs.values():
            pong.fail(error)
        for status in self._statuses:
            status.fail(error)
        for jobs in self._jobs:
            jobs.fail(error)
        for notice in self._notices.values():
            notice.fail(error)
        # a guest that was asked to end and is gone has done as it was told
        if self._going_down:
            self._goodbye.set(None)
        self._goodbye.fail(error)
        self._processes.clear()
        self._pongs.clear()
        self._statuses.clear()
        self._jobs.clear()
        self._notices.clear()

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise again(self._failure)

    # --- the guest ------------------------------------------------------------------------

    async def wait_hello(self) -> e.HelloReceived:
        """Wait for the agent's greeting.

        Raises:
            GuestGone: the stream ended first.
            GuestProtocolError: what came is not an agent's greeting.
        """
        return await self._hello.wait()

    def _start(
        self, request: RunRequest | AttachRequest, max_output_bytes: int | None = None
    ) -> AgentProcess:
        self._check_alive()
        if isinstance(request, AttachRequest):
            stream, raw = self._connection.attach(request)
        else:
            stream, raw = self._connection.run(request, time.time_ns())
        process = AgentProcess(self._connection, self._outbox, stream, request, max_output_bytes)
        self._processes[stream] = process
        self._outbox.put(raw)
        return process

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes = b"",
        check: bool = False,
        max_output_bytes: int = 64 * 1024 * 1024,
    ) -> RunResult:
        """Run a command to its end and collect what it prints; see `Guest.run`."""
        request = RunRequest(
            argv=argv,
            env=tuple((env or {}).items()),
            cwd=cwd,
            user=user,
            flags=RunFlag(0) if stdin else RunFlag.NO_STDIN,
        )
        await self._outbox.room()
        process = self._start(request, max_output_bytes)
        try:
            if stdin:
                await _feed(process, stdin)
            result = await process.wait()
        finally:
            process.release()
        if check and not result.success:
            raise CommandFailed(_describe(result))
        return result

    @asynccontextmanager
    async def _spawn(self, request: RunRequest | AttachRequest) -> AsyncIterator[AgentProcess]:
        await self._outbox.room()
        process = self._start(request)
        try:
            await process.started.wait()
            yield process
        finally:
            process.release()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: TtySize | None = None,
    ) -> AbstractAsyncContextManager[GuestProcess]:
        """Start a command and give its streams; see `Guest.spawn`."""
        return self._spawn(
            RunRequest(
                argv=argv,
                env=tuple((env or {}).items()),
                cwd=cwd,
                user=user,
                tty=None if tty is None else (tty.rows, tty.cols),
            )
        )

    async def _needs(self, minor: int, what: str) -> None:
        """Hold what is asked against the agent's version; its greeting has to be known for that."""
        hello = await self.wait_hello()
        if hello.minor < minor:
            raise GuestError(
                f"The guest's agent is too old to {what}.",
                remedy="Its image is older than this microvm: rebuild it (microvm image build).",
            )

    # --- files and jobs -------------------------------------------------------------------

    @property
    def files(self) -> GuestFiles:
        """The guest's files."""
        from microvm_guest.files.client import AgentFiles

        return AgentFiles(self._launch_files)

    @asynccontextmanager
    async def _launch_files(self, words: tuple[str, str]) -> AsyncIterator[AgentProcess]:
        await self._needs(1, "handle files")
        stdin = RunFlag(0) if words[0] == "put" else RunFlag.NO_STDIN
        flags = RunFlag.FILES | RunFlag.MERGE | stdin
        async with self._spawn(RunRequest(argv=words, flags=flags)) as process:
            yield process

    async def spawn_detached(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        log_bytes: int = DEFAULT_LOG_BYTES,
    ) -> AgentJob:
        """Start a command that goes on by itself; see `Guest.spawn_detached`."""
        request = RunRequest(
            argv=argv,
            env=tuple((env or {}).items()),
            cwd=cwd,
            user=user,
            flags=RunFlag.DETACH | RunFlag.MERGE | RunFlag.NO_STDIN,
            log_bytes=log_bytes,
        )
        await self._needs(1, "detach commands")
        await self._outbox.room()
        process = self._start(request)
        process.forget()  # whoever is cancelled now never learns its id
        try:
            job_id = await process.started.wait()
            process.forget(False)
        finally:
            process.release()
        return AgentJob(job_id, self._spawn, self.jobs)

    async def jobs(self) -> Sequence[JobStatus]:
        """The detached commands; see `Guest.jobs`."""
        await self._needs(1, "detach commands")
        await self._outbox.room()
        self._check_alive()
        reply: Reply[tuple[JobRecord, ...]] = Reply()
        self._jobs.append(reply)
        self._outbox.put(self._connection.ask_jobs())
        return tuple(job_status(job) for job in await reply.wait())

    async def job(self, job_id: int) -> AgentJob:
        """A detached command by its id; see `Guest.job`."""
        job = AgentJob(job_id, self._spawn, self.jobs)
        await job.status()
        return job

    # --- the machine ----------------------------------------------------------------------

    async def _notify(self, notice: Notice) -> None:
        """Tell of the machine, and wait until the agent has done what it does then."""
        await self._needs(1, "hear of pauses")
        await self._outbox.room()
        self._check_alive()
        reply = self._notices.get(notice)
        if reply is None:
            reply = self._notices[notice] = Reply()
            self._outbox.put(self._connection.notify(notice, time.time_ns()))
        await reply.wait()

    async def prepare_pause(self) -> None:
        """Have what programs in the guest wrote put on its disks; returns when it is there."""
        await self._notify(Notice.PAUSING)

    async def catch_up_clock(self, *, set_back: bool = False) -> float:
        """Make up for what the guest's clock has lost while the guest stood still.

        Args:
            set_back: Whether the host's clock was set back by more than a second, and the guest's
                is to follow. An agent that is older than this can't, and its clock stays ahead.

        Returns:
            The seconds that the guest's clock may still be behind the host's by: the time that the
            host's word of it took at most. A clock that somebody in the guest has set on purpose
            keeps its offset.
        """
        if set_back and (await self.wait_hello()).minor >= 2:
            # What this loses on its way, the words that follow make up for.
            await self._notify(Notice.CLOCK_SET_BACK)
        bound = math.inf
        for _ in range(CLOCK_TRIES):
            begin = time.perf_counter()
            await self._notify(Notice.RESUMED)
            bound = min(bound, time.perf_counter() - begin)
            if bound <= CLOCK_GOOD_S:
                break
        return bound

    async def connect_to(self, address: TcpAddress | UnixAddress) -> HalfCloseableStream:
        """Open a stream to a socket in the guest; see `Guest.connect_to`."""
        if self._channels is None:
            return await super().connect_to(address)
        return await forwarding.connect_to(self._channels, address)

    async def socks5_handler(
        self,
        server: TcpAddress | UnixAddress | None = None,
        login: tuple[str, str] | None = None,
    ) -> Handle:
        """Serve SOCKS5 clients by a server in the guest; see `Guest.socks5_handler`."""
        if self._channels is None:
            return await super().socks5_handler(server, login)
        return await self._socks5().handler(server, login)

    async def connect_through(self, host: str, port: int) -> HalfCloseableStream:
        """Open a stream to what the guest can reach; see `Guest.connect_through`."""
        if self._channels is None:
            return await super().connect_through(host, port)
        return await self._socks5().connect(host, port)

    def outbound_handler(self, policy: OutboundPolicy) -> Handle:
        """Serve the guest as its proxy; see `Guest.outbound_handler`."""
        if self._channels is None:
            return super().outbound_handler(policy)
        from microvm_guest.socks5.outbound import OutboundProxy

        return OutboundProxy(policy, self._channels).serve

    def _socks5(self) -> GuestSocks5:
        assert self._channels is not None
        if self._through is None:
            from microvm_guest.socks5.through import GuestSocks5

            self._through = GuestSocks5(self, self._channels)
        return self._through

    async def launch(self, request: RunRequest) -> AgentProcess:
        """Start a command that lasts as long as this client, unless it is released before.

        Raises:
            GuestError: it could not be started.
            GuestGone: the machine or its agent has ended.
        """
        await self._outbox.room()
        process = self._start(request)
        try:
            await process.started.wait()
        except BaseException:
            process.release()
            raise
        return process

    def listen_at(
        self, address: TcpAddress | UnixAddress, host_port: int
    ) -> AbstractAsyncContextManager[TcpAddress | UnixAddress]:
        """Listen in the guest for a port of the host's; see `Guest.listen_at`."""
        if self._channels is None:
            return super().listen_at(address, host_port)
        return forwarding.listen_at(self._channels, address, host_port)

    async def ping(self) -> float:
        """Round trip to the agent in milliseconds."""
        await self._outbox.room()
        self._check_alive()
        token, raw = self._connection.ping()
        reply = self._pongs[token] = Reply()
        begin = time.perf_counter_ns()
        self._outbox.put(raw)
        await reply.wait()
        return (time.perf_counter_ns() - begin) / 1e6

    async def status(self) -> Mapping[str, int | float | str]:
        """What the agent says of its guest.

        Keys: build, kernel, uptime_ms, mem_total_kib, mem_available_kib, load_1, load_5 and
        load_15 (processes that run or wait for a disk, on average), commands, jobs, connections,
        pauses and pid, each of them only if the agent knows it.
        """
        await self._outbox.room()
        self._check_alive()
        reply: Reply[Mapping[str, int | float | str]] = Reply()
        self._statuses.append(reply)
        self._outbox.put(self._connection.ask_status())
        return await reply.wait()

    async def set_clock(self, wall_time_ns: int | None = None) -> None:
        """Set the guest's wall clock to the host's, or to nanoseconds since 1970.

        Seldom needed: every command brings the host's time, and the agent makes up for what
        the guest has lost while the host slept.
        """
        await self._outbox.room()
        self._check_alive()
        now = time.time_ns() if wall_time_ns is None else wall_time_ns
        self._outbox.put(self._connection.set_clock(now))

    async def shutdown(self, *, power_off: bool = False) -> None:
        """Ask the guest to end itself; see `Guest.shutdown`.

        A guest whose agent goes without an answer counts as one that has agreed.

        Args:
            power_off: Cut the power, for machines that have a way to; the default is a reset,
                which ends a machine that does not reboot.
        """
        await self._outbox.room()
        if not self._going_down:
            self._check_alive()
            self._going_down = True
            self._outbox.put(self._connection.shutdown(power_off=power_off))
        await self._goodbye.wait()


async def _feed(process: AgentProcess, stdin: bytes) -> None:
    try:
        await process.stdin.send_all(stdin)
    except trio.BrokenResourceError:
        return  # it did not want all of it: its end says whether that is an error
    process.stdin.close()


def _describe(result: RunResult) -> str:
    ended = (
        f"exited with code {result.exit_code}"
        if result.signal is None
        else f"was ended by signal {result.signal}"
    )
    text = visible_lines(result.stderr[-STDERR_SHOWN:].decode("utf-8", "replace").strip())
    return f"{result.argv[0]!r} {ended}." + (f" It printed on stderr:\n{text}" if text else "")
