"""Every CPython from 3.11 up on this machine: on PATH, or in pyenv's folder."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FIRST_MINOR, LAST_MINOR = 11, 19


@functools.cache
def found() -> dict[str, str]:
    """Version ("3.12") to interpreter. Each was run: a pyenv shim on PATH may be an empty one."""
    answers = {}
    for minor in range(FIRST_MINOR, LAST_MINOR + 1):
        for candidate in _candidates(minor):
            if _is_python(candidate, minor):
                answers[f"3.{minor}"] = candidate
                break
    return answers


def oldest() -> str:
    """The interpreter for sessions that run once."""
    return next(iter(found().values()), sys.executable)


def _candidates(minor: int) -> Iterator[str]:
    if sys.version_info[:2] == (3, minor) and sys.prefix == sys.base_prefix:
        yield sys.executable
    on_path = shutil.which(f"python3.{minor}")
    if on_path:
        yield on_path
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(map(str, root.glob(f"versions/3.{minor}.*/bin/python")), reverse=True)


def _is_python(path: str, minor: int) -> bool:
    check = f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
    try:
        done = subprocess.run([path, "-c", check], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
