"""`Guest` without async."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from microvm.abc.jobs import DEFAULT_LOG_BYTES
from microvm.sync._channels import socket_from
from microvm.sync._files import GuestFiles
from microvm.sync._jobs import GuestJob
from microvm.sync._process import GuestProcess

if TYPE_CHECKING:
    import trio

    from microvm.abc import Guest as AsyncGuest
    from microvm.abc import JobStatus, RunResult, TtySize
    from microvm.forwards import TcpAddress, UnixAddress
    from microvm.sync._loop import BackgroundLoop


class Guest:
    """What `Machine.wait_ready` returns: the guest; see `microvm.abc.Guest`."""

    def __init__(self, loop: BackgroundLoop, nursery: trio.Nursery, guest: AsyncGuest) -> None:
        self._loop = loop
        self._nursery = nursery
        self._guest = guest

    def run(
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
        """Run a command to its end and collect what it prints."""
        return self._loop.call(
            partial(
                self._guest.run,
                argv,
                env=env,
                cwd=cwd,
                user=user,
                stdin=stdin,
                check=check,
                max_output_bytes=max_output_bytes,
            )
        )

    @contextmanager
    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: TtySize | None = None,
    ) -> Iterator[GuestProcess]:
        """Start a command and give its streams; leaving the block kills what still runs."""
        enter = partial(self._guest.spawn, argv, env=env, cwd=cwd, user=user, tty=tty)
        with self._loop.hold(enter) as process:
            yield GuestProcess(self._loop, process)

    def ping(self) -> float:
        """Round trip to the agent in milliseconds, as the background loop sees it."""
        return self._loop.call(self._guest.ping)

    def status(self) -> Mapping[str, Any]:
        """What the agent says of its guest: version, kernel, uptime, memory, commands."""
        return self._loop.call(self._guest.status)

    def shutdown(self) -> None:
        """Ask the guest to end itself. Returns when the agent has agreed; see `Machine.wait`."""
        self._loop.call(self._guest.shutdown)

    @property
    def files(self) -> GuestFiles:
        """The guest's files."""
        return GuestFiles(self._loop, self._guest.files)

    def spawn_detached(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        log_bytes: int = DEFAULT_LOG_BYTES,
    ) -> GuestJob:
        """Start a command that goes on by itself and keeps a log."""
        work = partial(
            self._guest.spawn_detached, argv, env=env, cwd=cwd, user=user, log_bytes=log_bytes
        )
        return GuestJob(self._loop, self._loop.call(work))

    def jobs(self) -> Sequence[JobStatus]:
        """The detached commands that run or were not removed, newest first."""
        return self._loop.call(self._guest.jobs)

    def job(self, job_id: int) -> GuestJob:
        """A detached command by its id, whoever has started it."""
        return GuestJob(self._loop, self._loop.call(partial(self._guest.job, job_id)))

    def connect_to(self, address: TcpAddress | UnixAddress) -> socket.socket:
        """A blocking socket to a TCP port or AF_UNIX socket as a program in the guest has it."""
        return socket_from(self._loop, self._nursery, partial(self._guest.connect_to, address))

    def connect_through(self, host: str, port: int) -> socket.socket:
        """A blocking socket to whatever the guest can reach; it resolves the name."""
        work = partial(self._guest.connect_through, host, port)
        return socket_from(self._loop, self._nursery, work)

    @contextmanager
    def listen_at(
        self, address: TcpAddress | UnixAddress, host_port: int
    ) -> Iterator[TcpAddress | UnixAddress]:
        """Have the guest listen within the block, for a vsock port of the host's."""
        with self._loop.hold(partial(self._guest.listen_at, address, host_port)) as bound:
            yield bound
