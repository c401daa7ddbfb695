"""Detached commands, as their user follows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from trio.abc import ReceiveStream

    from microvm.abc.guest import RunResult

DEFAULT_LOG_BYTES: Final = 256 * 1024
"""How much of what a job prints the agent keeps."""


@attrs.frozen(kw_only=True)
class JobStatus:
    """What the guest says of a job."""

    id: int
    argv: tuple[str, ...]
    """As far as the agent remembers it."""
    running: bool
    pid: int | None
    """In the guest, while it runs."""
    exit_code: int | None
    """Once it has ended, unless a signal ended it."""
    signal: int | None
    age_s: float
    """Seconds since it was started, by the guest's clock."""
    log_bytes: int
    """What it has printed so far."""
    log_kept: int
    """How much of that, the last of it, is still to be had."""


class JobOutput(ABC):
    """What a job prints, both its outputs in one, as a trio stream."""

    stream: ReceiveStream
    skipped: int
    """Bytes that were gone from the log before they could be read, so far."""


class GuestJob(ABC):
    """A command that runs in the guest by itself, whoever is connected to it.

    Made by `Guest.spawn_detached`; found again, also from another program, by `Guest.job`.
    """

    id: int

    @abstractmethod
    async def status(self) -> JobStatus:
        """What the agent says of it.

        Raises:
            GuestError: there is no such job any more.
        """

    @abstractmethod
    async def logs(self) -> bytes:
        """The last that it has printed, as much as is kept."""

    @abstractmethod
    def follow(self, *, from_start: bool = True) -> AbstractAsyncContextManager[JobOutput]:
        """What it prints, from what is kept of the start or from now, until it ends.

        The job never waits for its reader: one that is too slow misses bytes, which are counted.
        """

    @abstractmethod
    async def wait(self) -> RunResult:
        """Wait for its end. `stdout` and `stderr` of the result are empty: see `logs`."""

    @abstractmethod
    async def send_signal(self, signal: int) -> None:
        """Send a signal (the guest's numbering) to its process group; none if it has ended."""

    @abstractmethod
    async def remove(self) -> None:
        """Kill it if it runs, with all that it has started, and forget its log."""
