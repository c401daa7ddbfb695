"""A child process that dies with us: by `kill -9` of this process, by cancellation, by the end.

The kernel sends a child's death signal when the *thread* that started it ends, and trio retires
idle worker threads after 10 s. So each child has a thread of its own, which starts it, waits for
it and does nothing else:

    trio thread                          the child's thread
      HeldProcess.start ---------------->  Popen, pidfd_open
      started           <---------------   (blocks in waitpid)
      kill: pidfd_send_signal                   :
      ended             <---------------   waitpid returns; the thread ends

Signals go through the pidfd: the child's number may be another process's once it was waited for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from microvm.errors import BackendError


class HeldProcess:
    """A running child; made by `held_process`. For the trio thread."""

    def __init__(self, argv: Sequence[str], pass_fds: Sequence[int], stderr: int) -> None:
        self._argv = argv
        self._pass_fds = tuple(pass_fds)
        self._stderr = stderr
        self._trio = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._hold, name="microvm-qemu", daemon=True)
        self._started = trio.Event()
        self._ended = trio.Event()
        self._failure: Exception | None = None
        self._pid = -1
        self._pidfd = -1
        self._returncode = 0

    # --- the child's thread --------------------------------------------------------------

    def _hold(self) -> None:
        try:
            child = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=self._pass_fds,
                # Out of the terminal's reach: Ctrl-C is for us, and we end the machine.
                start_new_session=True,
            )
        except Exception as error:
            self._failure = error
            self._tell(self._started.set)
            return
        try:
            self._pidfd = os.pidfd_open(child.pid)
        except OSError as error:
            self._failure = error
            child.kill()  # not yet waited for: the number is still its own
            child.wait()
            self._tell(self._started.set)
            return
        self._pid = child.pid
        self._tell(self._started.set)
        self._returncode = child.wait()
        self._tell(self._ended.set)

    def _tell(self, what: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):  # then nobody waits any more
            self._trio.run_sync_soon(what)

    # --- the trio thread -----------------------------------------------------------------

    async def _start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:
            raise BackendError(
                f"No thread could be started to run QEMU: {error}.",
                remedy="The limit on processes and threads is reached (ulimit -u, pids.max).",
            ) from error
        await self._started.wait()
        if self._failure is not None:
            self._thread.join()
            reason = getattr(self._failure, "strerror", None) or self._failure
            raise BackendError(
                f"{self._argv[0]} could not be started: {reason}."
            ) from self._failure

    async def _end(self) -> None:
        self.kill()
        await self._ended.wait()
        self._thread.join()  # it has nothing left to do
        os.close(self._pidfd)

    @property
    def pid(self) -> int:
        """Its process id, for messages: it means nothing once the process has ended."""
        return self._pid

    @property
    def ended(self) -> bool:
        """Whether it has ended and was waited for."""
        return self._ended.is_set()

    @property
    def returncode(self) -> int:
        """The exit code, negative for a signal; for a process that has `ended`."""
        assert self.ended
        return self._returncode

    def kill(self) -> None:
        """Send SIGKILL; nothing happens if it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end and return the exit code, negative for a signal."""
        await self._ended.wait()
        return self.returncode


@asynccontextmanager
async def held_process(
    argv: Sequence[str], *, pass_fds: Sequence[int], stderr: int
) -> AsyncIterator[HeldProcess]:
    """Run a program within the block; on leaving it, it is killed and waited for.

    Standard input and output are ``/dev/null``. For `kill -9` of this process to end it too,
    `argv` must ask for a death signal (`dying_with_parent`).

    Args:
        argv: Program and arguments.
        pass_fds: Descriptors that it inherits under the same numbers.
        stderr: A descriptor for its standard error.

    Raises:
        BackendError: it could not be started.
    """
    process = HeldProcess(argv, pass_fds, stderr)
    with trio.CancelScope(shield=True):  # a start takes 2 ms and can't be undone halfway
        await process._start()
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await process._end()
