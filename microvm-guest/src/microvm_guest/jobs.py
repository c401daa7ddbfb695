"""`AgentJob`: a detached command in the guest, through whichever connection to its agent.

Whatever is asked of a job is asked by attaching to it. An attachment is a stream as a command's, so
windows and errors are what they are there; letting go of it leaves the job as it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from microvm.abc import GuestJob, JobOutput, JobStatus, RunResult
from microvm.errors import GuestError
from microvm_guest.protocol.jobs import LOG_END, AttachRequest, JobRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm_guest.process import AgentProcess

Attach = Callable[[AttachRequest], "AbstractAsyncContextManager[AgentProcess]"]
"""Attaches to a job; the process's streams are the attachment's."""


class FollowedOutput(JobOutput):
    """What a job prints, as it comes."""

    def __init__(self, process: AgentProcess) -> None:
        self._process = process
        self.stream = process.stdout

    @property
    def skipped(self) -> int:  # type: ignore[override]  # a property is an attribute to its readers
        """Bytes that were gone from the log before they could be read, so far."""
        return self._process.skipped


class AgentJob(GuestJob):
    """A detached command of an agent's guest.

    Args:
        job_id: Which.
        attach: Attaches to it.
        ask: Asks the agent for all its jobs.
    """

    def __init__(
        self,
        job_id: int,
        attach: Attach,
        ask: Callable[[], Awaitable[Sequence[JobStatus]]],
    ) -> None:
        self.id = job_id
        self._attach = attach
        self._ask = ask

    async def status(self) -> JobStatus:
        """What the agent says of it; see `GuestJob.status`."""
        for status in await self._ask():
            if status.id == self.id:
                return status
        raise GuestError(
            f"The guest has no job {self.id}.",
            remedy="It was removed, or gave way to a newer one after it had ended.",
        )

    async def logs(self) -> bytes:
        """The last that it has printed; see `GuestJob.logs`."""
        # As many bytes as it keeps now are there for whoever asks, the same ones or later ones: a
        # log that has lost some since is full. And no agent can have us keep more.
        kept = (await self.status()).log_kept
        log = bytearray()
        async with self.follow() as output:
            while len(log) < kept:
                data = await output.stream.receive_some()
                if not data:
                    break
                log += data
        return bytes(log[:kept])

    @asynccontextmanager
    async def follow(self, *, from_start: bool = True) -> AsyncIterator[JobOutput]:
        """What it prints; see `GuestJob.follow`."""
        async with self._attached(log_from=0 if from_start else LOG_END) as process:
            yield FollowedOutput(process)

    async def wait(self) -> RunResult:
        """Wait for its end; see `GuestJob.wait`."""
        async with self._attached(log_from=LOG_END) as process:
            process.stdout.close()
            return await process.wait()

    async def send_signal(self, signal: int) -> None:
        """Send a signal; see `GuestJob.send_signal`."""
        async with self._attached(log_from=LOG_END) as process:
            await process.send_signal(signal)

    async def remove(self) -> None:
        """Kill and forget it; see `GuestJob.remove`."""
        async with self._attached(log_from=LOG_END, forget=True) as process:
            process.stdout.close()
            await process.wait()

    @asynccontextmanager
    async def _attached(
        self, *, log_from: int, forget: bool = False
    ) -> AsyncIterator[AgentProcess]:
        request = AttachRequest(job=self.id, log_from=log_from, forget=forget)
        async with self._attach(request) as process:
            await trio.lowlevel.checkpoint()
            yield process


def job_status(job: JobRecord) -> JobStatus:
    """What the agent's record of a job means to its user."""
    ended_well = not job.running and not job.signal
    return JobStatus(
        id=job.id,
        argv=job.argv,
        running=job.running,
        pid=job.pid if job.running else None,
        exit_code=job.exit_code if ended_well else None,
        signal=job.signal or None,
        age_s=job.age_ns / 1e9,
        log_bytes=job.log_end,
        log_kept=job.log_end - job.log_begin,
    )
