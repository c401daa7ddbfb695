"""Arguments that make a program die with the process that started it. Pure.

Between fork and exec somebody has to ask the kernel for a signal at the parent's death
(prctl(2), PR_SET_PDEATHSIG). `preexec_fn` would run Python in a fork of a threaded process; so
the child first executes a program that asks, and that then executes the real one in its place:
``setpriv`` from util-linux (1.5 ms), or a few lines of Python (9 ms).

The signal is not sent to a child whose parent died before it asked. The shim looks; setpriv does
not, and QEMU then finds its vhost-user sockets at their end, and gives up. A machine without such
a device takes the shim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SHIM: Final = """\
import ctypes, os, signal, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0):
    sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has died")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Takes the parent's process id, then the program's absolute path and arguments."""


def dying_with_parent(
    argv: Sequence[str], *, setpriv: str | None, python: str, parent: int
) -> list[str]:
    """`argv`, whose program is an absolute path, to be killed when its parent thread ends.

    Args:
        argv: The program and its arguments.
        setpriv: A setpriv that knows ``--pdeathsig``, or None to use the shim.
        python: An interpreter for the shim.
        parent: The id of the process that will start it.
    """
    if setpriv is not None:
        return [setpriv, "--pdeathsig", "KILL", "--", *argv]
    return [python, "-I", "-S", "-c", SHIM, str(parent), *argv]
