"""The worker process as its caller holds it.

It is started as this process was, on the same interpreter and the same `sys.path`, so that both
find the same packages: in a virtual environment, below a `PYTHONPATH`, after an application has
changed the path. That takes an interpreter: a program that was frozen into one file has none, and
one that embeds Python under another `sys.executable` must point that at one.

The worker's death shows as the end of its socket, which nobody else holds; so no thread has to
wait for it, and no descriptor but that one is watched. It ends with its caller by itself; see
`guardian`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from typing import Final

from microvm.config import ConfigProblem
from microvm.errors import BackendError

log = logging.getLogger("microvm.worker")

REAP_WITHIN_S: Final = 5.0
"""For the kernel to be done with a process that was killed; it takes a millisecond."""
REAP_LOOK_EVERY_S: Final = 0.001

_PROGRAM: Final = """\
import sys
control, parent, *sys.path[:] = sys.argv[1:]
from microvm.worker.__main__ import main
main(int(control), int(parent))
"""


def problems_here() -> list[ConfigProblem]:
    """Why no worker process can be had in this program or on this system."""
    if not hasattr(socket, "SCM_RIGHTS"):
        what = "needs AF_UNIX sockets that carry descriptors, which this system has not."
    elif getattr(sys, "frozen", False):
        what = "needs a Python interpreter to run, and this program was frozen without one."
    elif not sys.executable:
        what = "needs a Python interpreter to run, and sys.executable names none."
    else:
        return []
    return [ConfigProblem("isolation", what, 'Use isolation="inline".')]


class WorkerProcess:
    """A worker, running. `close` it.

    Raises:
        BackendError: it could not be started.
    """

    def __init__(self) -> None:
        with ExitStack() as undo:
            try:
                self.control, far_control = _pair(undo)
                self.stderr, far_stderr = _pair(undo)
                self._popen = subprocess.Popen(
                    [*_interpreter(), str(far_control.fileno()), str(os.getpid()), *_path()],
                    stdin=subprocess.DEVNULL,
                    stdout=far_stderr.fileno(),
                    stderr=far_stderr.fileno(),
                    pass_fds=[far_control.fileno()],
                    # Out of the terminal's reach: Ctrl-C is for us, and we end the machine.
                    start_new_session=True,
                )
            except OSError as error:
                raise BackendError(
                    f"No worker process could be started: {error.strerror}.",
                    remedy="The limit on processes or open files is reached, or "
                    f"{sys.executable} can't be run.",
                ) from error
            undo.pop_all()
        far_control.close()
        far_stderr.close()

    @property
    def pid(self) -> int:
        """Its process id, for messages: it means nothing once the process has ended."""
        return self._popen.pid

    def kill(self) -> None:
        """Send SIGKILL; nothing happens if it has ended. It has not been waited for before."""
        self._popen.kill()

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None until it was seen to have ended."""
        return self._popen.returncode

    async def reap(self) -> None:
        """Wait for the end of a process that is dying, for `REAP_WITHIN_S` at most."""
        import trio

        with trio.move_on_after(REAP_WITHIN_S):
            while self._popen.poll() is None:  # noqa: ASYNC110 - the kernel tells, not a task
                await trio.sleep(REAP_LOOK_EVERY_S)

    def close(self) -> None:
        """Kill it if it still runs, and let go of it. Blocks for as long as its death takes."""
        self._popen.kill()
        try:
            self._popen.wait(REAP_WITHIN_S)
        except subprocess.TimeoutExpired:
            log.error("The worker process %d can't be killed.", self.pid)
        self.control.close()
        self.stderr.close()


def describe_end(returncode: int | None) -> str:
    """How a process ended, to stand behind its name."""
    if returncode is None:
        return "does not die, though it was killed"
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = str(-returncode)
    return f"was killed by signal {name}"


def _pair(undo: ExitStack) -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    return undo.enter_context(closing(near)), undo.enter_context(closing(far))


def _interpreter() -> list[str]:
    """This interpreter, as willing to listen to the environment as ours was.

    Never with the current directory on its path before ours replaces it.
    """
    flags = ["-P"]
    flags += ["-E"] if sys.flags.ignore_environment else []
    flags += ["-s"] if sys.flags.no_user_site else []
    return [sys.executable, *flags, "-c", _PROGRAM]


def _path() -> list[str]:
    """What imports look at; they pass over what is no text."""
    entries: list[object] = list(sys.path)
    return [entry for entry in entries if isinstance(entry, str)]
