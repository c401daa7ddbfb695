"""What a guest and its machine both let you do in the guest, without async.

Of a machine each waits for the guest by itself, and an error about a guest that has gone says how
the machine ended.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from microvm.abc.jobs import DEFAULT_LOG_BYTES
from microvm.sync._channels import socket_from
from microvm.sync._files import GuestFiles
from microvm.sync._jobs import GuestJob
from microvm.sync._process import GuestProcess

if TYPE_CHECKING:
    import trio

    from microvm._machine import Machine as AsyncMachine
    from microvm.abc import Guest as AsyncGuest
    from microvm.abc import JobStatus, RunResult, TtySize
    from microvm.sync._loop import BackgroundLoop


class GuestVerbs(ABC):
    """The part that `Guest` and `Machine` share; see `microvm.abc.Guest`."""

    @abstractmethod
    def _live(self) -> tuple[BackgroundLoop, AsyncGuest | AsyncMachine]:
        """The loop, and whose verbs are called on it; a `RuntimeError` if it is not started."""

    @abstractmethod
    def _nursery(self) -> trio.Nursery:
        """The machine's, for what a socket needs done while it is open."""

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
        loop, guest = self._live()
        return loop.call(
            partial(
                guest.run,
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
        loop, guest = self._live()
        enter = partial(guest.spawn, argv, env=env, cwd=cwd, user=user, tty=tty)
        with loop.hold(enter) as process:
            yield GuestProcess(loop, process)

    @property
    def files(self) -> GuestFiles:
        """The guest's files."""
        loop, guest = self._live()
        return GuestFiles(loop, guest.files)

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
        loop, guest = self._live()
        work = partial(guest.spawn_detached, argv, env=env, cwd=cwd, user=user, log_bytes=log_bytes)
        return GuestJob(loop, loop.call(work))

    def jobs(self) -> Sequence[JobStatus]:
        """The detached commands that run or were not removed, newest first."""
        loop, guest = self._live()
        return loop.call(guest.jobs)

    def job(self, job_id: int) -> GuestJob:
        """A detached command by its id, whoever has started it."""
        loop, guest = self._live()
        return GuestJob(loop, loop.call(partial(guest.job, job_id)))

    def connect_through(self, host: str, port: int) -> socket.socket:
        """A blocking socket to whatever the guest can reach; it resolves the name."""
        loop, guest = self._live()
        return socket_from(loop, self._nursery(), partial(guest.connect_through, host, port))
