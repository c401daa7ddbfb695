"""Running the programs of a build so that none outlives it.

Each runs in a session of its own together with a guard: a shell that waits for the end of a
pipe whose other end only the builder holds. A builder that dies, by kill -9 too, closes the
pipe, and the guard kills the whole process group, sub-makes and compilers with it. (The parent
death signal would reach the first process only.)
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from microvm_guest.image.errors import BuildError, CacheError

TAIL_LINES = 20
MAX_LINE_BYTES = 64 * 1024

_GUARD = (
    'exec 3<&0 </dev/null; (read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 & exec 3<&-; exec "$@"'
)
_KEPT = frozenset(
    [
        "PATH",
        "HOME",
        "TMPDIR",
        "APT_CONFIG",
        "http_proxy",
        "https_proxy",
        "ftp_proxy",
        "no_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
    ]
)


def clean_environ(environ: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """The variables a build step gets: few, so that results don't depend on who builds.

    ``MAKEFLAGS``, ``CFLAGS``, ``KBUILD_*`` and their like of the caller are not among them.
    """
    kept = {name: value for name, value in environ.items() if name in _KEPT}
    return {**kept, "LC_ALL": "C", **extra}


@contextmanager
def guarded(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pipe_stdin: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `argv`, its stdout and stderr as one pipe; kill its whole group on the way out.

    With `pipe_stdin` it reads what the caller writes to `stdin`, and there is no guard: end of
    file on that pipe ends it anyway, which holds for tar and nothing else here.

    Raises:
        BuildError: there is no such program.
    """
    command = list(argv) if pipe_stdin else ["/bin/sh", "-c", _GUARD, "sh", *argv]
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=clean_environ(os.environ, env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise BuildError(
            f"{argv[0]} is not installed.", remedy="Install it, or put it on PATH."
        ) from error
    try:
        yield process
    finally:
        # The group's number is the leader's pid, and stays taken while the leader is not
        # reaped: so kill first, then wait.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        process.wait()


def run(
    argv: Sequence[str],
    *,
    what: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda _line: None,
    is_noise: Callable[[str], bool] = lambda _line: False,
) -> None:
    """Run a build step to its end, giving each line it prints to `on_line`.

    Args:
        argv: Program and arguments.
        what: What the step does, for the error: "building the kernel".
        cwd: Directory to run it in.
        env: Variables on top of `clean_environ`.
        on_line: Gets each line of stdout and stderr, without its end, in this thread.
        is_noise: Tells lines that no error needs to show.

    Raises:
        BuildError: it ended with another code than 0; the error holds its last lines.
        CacheError: likewise, and they say that the disk is full.
    """
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with guarded(argv, cwd=cwd, env=env) as process:
        assert process.stdout is not None
        for line in lines(process.stdout):
            if not is_noise(line):
                tail.append(line)
            on_line(line)
        code = exit_code(process)
    if code:
        raise step_failed(what, argv, code, tail)


def lines(stream: IO[bytes]) -> Iterator[str]:
    """The lines of a stream, without their ends; an endless one comes in pieces."""
    while raw := stream.readline(MAX_LINE_BYTES):
        yield raw.decode(errors="replace").rstrip()


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for the leader's end without reaping it: `guarded` still has its group to kill."""
    info = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert info is not None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def step_failed(
    what: str, argv: Sequence[str], code: int, tail: Iterable[str]
) -> BuildError | CacheError:
    """The error for a step that ended with `code` (negative: by that signal)."""
    last = [line for line in tail if line]
    how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
    message = f"{what}: {argv[0]} ended {how}."
    if any("No space left on device" in line for line in last):
        return CacheError(
            f"{message} The disk is full.",
            remedy="Free about 2 GiB, or set MICROVM_CACHE_DIR to a directory on a larger one.",
        )
    remedy = "What it printed last stands below." if last else "It printed nothing."
    return BuildError(message, remedy="\n".join([remedy, *(f"  {line}" for line in last)]))


def output_of(argv: Sequence[str], *, what: str, cwd: Path | None = None) -> str:
    """Everything a short command prints on stdout.

    Raises:
        BuildError: there is no such program, or it failed.
    """
    try:
        done = subprocess.run(
            list(argv),
            cwd=cwd,
            env=clean_environ(os.environ, {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise BuildError(
            f"{argv[0]} is not installed.", remedy="Install it, or put it on PATH."
        ) from error
    if done.returncode:
        tail = done.stderr.decode(errors="replace").splitlines()[-TAIL_LINES:]
        raise step_failed(what, argv, done.returncode, tail)
    return done.stdout.decode(errors="replace")
