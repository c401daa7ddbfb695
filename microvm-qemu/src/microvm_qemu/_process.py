"""A child process that dies with us: by `kill -9` of this process, by cancellation, by the end.

The kernel sends a child's death signal when the *thread* that started it ends, and trio retires
idle worker threads after 10 s. So each child has a thread of its own, which starts it, waits for
it and does nothing else:

    any thread                            the child's thread
      HeldProcess(...)  ---------------->  Popen, pidfd_open
      (blocks, 2 ms)    <---------------   (blocks in waitpid)
      kill: pidfd_send_signal                   :
      wait              <---------------   waitpid returns; the thread ends

Signals go through the pidfd: the child's number may be another process's once it was waited for.
Nothing here but `wait` needs a trio loop, so that a child can be started before there is one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from microvm.errors import BackendError

if TYPE_CHECKING:
    import trio


class HeldProcess:
    """A running child. Standard input and output are ``/dev/null``.

    `close` it, on the thread that made it. For `kill -9` of this process to end it too, `argv`
    must ask for a death signal (`dying_with_parent`).

    Args:
        argv: Program and arguments.
        pass_fds: Descriptors that it inherits under the same numbers.
        stderr: A descriptor for its standard error.

    Raises:
        BackendError: it could not be started.
    """

    def __init__(self, argv: Sequence[str], *, pass_fds: Sequence[int], stderr: int) -> None:
        self._argv = argv
        self._pass_fds = tuple(pass_fds)
        self._stderr = stderr
        self._launched = threading.Event()
        self._failure: Exception | None = None
        self._pid = -1
        self._pidfd = -1
        self._returncode = 0
        self._ended = False
        self._ended_lock = threading.Lock()
        self._waiting: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []
        self._thread = threading.Thread(target=self._hold, name="microvm-qemu", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise BackendError(
                f"No thread could be started to run QEMU: {error}.",
                remedy="The limit on processes and threads is reached (ulimit -u, pids.max).",
            ) from error
        self._launched.wait()
        self._check_launched()

    def _check_launched(self) -> None:
        if self._failure is not None:
            self._thread.join()
            reason = getattr(self._failure, "strerror", None) or self._failure
            message = f"{self._argv[0]} could not be started: {reason}."
            raise BackendError(message) from self._failure

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
            self._launched.set()
            return
        try:
            self._pidfd = os.pidfd_open(child.pid)
        except OSError as error:
            self._failure = error
            child.kill()  # not yet waited for: the number is still its own
            child.wait()
            self._launched.set()
            return
        self._pid = child.pid
        self._launched.set()
        self._returncode = child.wait()
        with self._ended_lock:
            self._ended = True
        for token, event in self._waiting:
            with suppress(RuntimeError):  # that loop has finished, and nobody waits any more
                token.run_sync_soon(event.set)

    @property
    def pid(self) -> int:
        """Its process id, for messages: it means nothing once the process has ended."""
        return self._pid

    @property
    def ended(self) -> bool:
        """Whether it has ended and was waited for."""
        return self._ended

    @property
    def returncode(self) -> int:
        """The exit code, negative for a signal; for a process that has `ended`."""
        assert self.ended
        return self._returncode

    def kill(self) -> None:
        """Send SIGKILL; nothing happens if it has ended."""
        if not self.ended:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end and return the exit code, negative for a signal."""
        import trio

        event = trio.Event()
        with self._ended_lock:
            if self._ended:
                return self._returncode
            self._waiting.append((trio.lowlevel.current_trio_token(), event))
        await event.wait()
        return self.returncode

    def close(self) -> None:
        """Kill it if it still runs, and let go of it. Blocks for as long as its death takes."""
        self.kill()
        self._thread.join()
        if self._pidfd != -1:
            os.close(self._pidfd)
            self._pidfd = -1


@asynccontextmanager
async def held_process(
    argv: Sequence[str], *, pass_fds: Sequence[int], stderr: int
) -> AsyncIterator[HeldProcess]:
    """Run a program within the block; on leaving it, it is killed and waited for.

    As `HeldProcess`, but that nothing blocks while the process dies.
    """
    process = HeldProcess(argv, pass_fds=pass_fds, stderr=stderr)
    try:
        yield process
    finally:
        await finish(process)


async def finish(process: HeldProcess) -> None:
    """Kill a process and let go of it, also when cancelled."""
    import trio

    with trio.CancelScope(shield=True):
        process.kill()
        await process.wait()
        process.close()
