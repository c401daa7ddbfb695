"""What a machine lets you do in its guest: commands, detached commands, files.

Each waits for the guest by itself, and an error about a guest that has gone says how the machine
ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from microvm.abc.jobs import DEFAULT_LOG_BYTES
from microvm.errors import GuestGone

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator

    from microvm.abc import (
        CopyLimits,
        CopyReport,
        Guest,
        GuestFiles,
        GuestJob,
        GuestProcess,
        JobStatus,
        RunResult,
        TtySize,
    )


class GuestVerbs(ABC):
    """The part of `Machine` that is its guest's."""

    @abstractmethod
    async def wait_ready(self) -> Guest:
        """As `Machine.wait_ready`."""

    @abstractmethod
    async def _explained(self, error: GuestGone) -> GuestGone:
        """The same error with the machine's end in it, when the machine has ended."""

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
        """Run a command in the guest to its end; see `Guest.run`."""
        guest = await self.wait_ready()
        try:
            return await guest.run(
                argv,
                env=env,
                cwd=cwd,
                user=user,
                stdin=stdin,
                check=check,
                max_output_bytes=max_output_bytes,
            )
        except GuestGone as error:
            raise await self._explained(error) from error

    @asynccontextmanager
    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: TtySize | None = None,
    ) -> AsyncIterator[GuestProcess]:
        """Start a command and hold its streams; see `Guest.spawn`."""
        guest = await self.wait_ready()
        try:
            async with guest.spawn(argv, env=env, cwd=cwd, user=user, tty=tty) as process:
                yield process
        except GuestGone as error:
            raise await self._explained(error) from error
        except BaseExceptionGroup as group:
            # Both streams of a command whose guest has gone, read in a nursery of the caller's.
            gone, others = group.split(GuestGone)
            if gone is None or others is not None:
                raise
            raise await self._explained(_first(gone)) from group

    @property
    def files(self) -> GuestFiles:
        """The guest's files; each of its methods waits for the guest."""
        from microvm._machine_files import MachineFiles

        return MachineFiles(self.wait_ready, self._explained)

    async def copy_in(self, local: str | os.PathLike[str], guest_path: str) -> CopyReport:
        """Copy a file or directory into the guest; see `GuestFiles.copy_in`."""
        return await self.files.copy_in(local, guest_path)

    async def copy_out(
        self,
        guest_path: str,
        local: str | os.PathLike[str],
        *,
        limits: CopyLimits | None = None,
    ) -> CopyReport:
        """Copy a file or directory out of the guest; see `GuestFiles.copy_out`."""
        return await self.files.copy_out(guest_path, local, limits=limits)

    async def spawn_detached(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        log_bytes: int = DEFAULT_LOG_BYTES,
    ) -> GuestJob:
        """Start a command that goes on by itself and keeps a log; see `Guest.spawn_detached`."""
        guest = await self.wait_ready()
        try:
            return await guest.spawn_detached(
                argv, env=env, cwd=cwd, user=user, log_bytes=log_bytes
            )
        except GuestGone as error:
            raise await self._explained(error) from error

    async def jobs(self) -> Sequence[JobStatus]:
        """The detached commands; see `Guest.jobs`."""
        guest = await self.wait_ready()
        try:
            return await guest.jobs()
        except GuestGone as error:
            raise await self._explained(error) from error

    async def job(self, job_id: int) -> GuestJob:
        """A detached command by its id; see `Guest.job`."""
        guest = await self.wait_ready()
        try:
            return await guest.job(job_id)
        except GuestGone as error:
            raise await self._explained(error) from error


def _first(group: BaseExceptionGroup[GuestGone]) -> GuestGone:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, GuestGone)
    return error
