"""Detached commands without async."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from microvm.sync._streams import reader

if TYPE_CHECKING:
    from microvm.abc import GuestJob as AsyncGuestJob
    from microvm.abc import JobOutput as AsyncJobOutput
    from microvm.abc import JobStatus, RunResult
    from microvm.sync._loop import BackgroundLoop


class JobOutput:
    """What a job prints, both its outputs in one, as a binary file."""

    stream: io.BufferedReader

    def __init__(self, loop: BackgroundLoop, output: AsyncJobOutput) -> None:
        self._output = output
        self.stream = reader(loop, output.stream)

    @property
    def skipped(self) -> int:
        """Bytes that were gone from the log before they could be read, so far."""
        return self._output.skipped


class GuestJob:
    """A command that runs in the guest by itself; see `microvm.abc.GuestJob`."""

    id: int

    def __init__(self, loop: BackgroundLoop, job: AsyncGuestJob) -> None:
        self._loop = loop
        self._job = job
        self.id = job.id

    def status(self) -> JobStatus:
        """What the agent says of it."""
        return self._loop.call(self._job.status)

    def logs(self) -> bytes:
        """The last that it has printed, as much as is kept."""
        return self._loop.call(self._job.logs)

    @contextmanager
    def follow(self, *, from_start: bool = True) -> Iterator[JobOutput]:
        """What it prints, from what is kept of the start or from now, until it ends."""
        with self._loop.hold(partial(self._job.follow, from_start=from_start)) as output:
            yield JobOutput(self._loop, output)

    def wait(self) -> RunResult:
        """Wait for its end. `stdout` and `stderr` of the result are empty: see `logs`."""
        return self._loop.call(self._job.wait)

    def send_signal(self, signal: int) -> None:
        """Send a signal (the guest's numbering) to its process group; none if it has ended."""
        self._loop.call(partial(self._job.send_signal, signal))

    def remove(self) -> None:
        """Kill it if it runs, with all that it has started, and forget its log."""
        self._loop.call(self._job.remove)
