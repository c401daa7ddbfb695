"""Files that a machine writes for its user: a console, a capture. What is in them is private.

The path may be in a folder that others write to, and what is there may be theirs. So a regular file
must be our own user's, whatever its mode was it is ours alone from then on, no symbolic link leads
to one, and no other machine writes to it. Nothing of a file is changed until all that is sure.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from microvm.errors import ConfigError
from microvm.file_lock import lock_file

_FLAGS: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Without O_NONBLOCK, opening a pipe would wait for its reader."""


def open_output_file(path: Path, label: str, *, special: bool = False) -> int:
    """Open a file to write to: empty, ours alone until it is closed, its user's alone (0600).

    What is no regular file stays as it is.

    Args:
        path: Where.
        label: What the user called the path; errors begin with it.
        special: Whether a pipe, a terminal or another device will do. A symbolic link may lead to
            one, as ``/dev/stdout`` does.

    Returns:
        The descriptor, which does not block.

    Raises:
        ConfigError: it can't be written, is not ours, or is in use.
    """
    try:
        fd, is_link = _open(path, special=special)
    except OSError as error:
        raise _unusable(path, label, error) from error
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            if is_link:
                raise _is_link(path, label)
            if status.st_uid != os.geteuid():
                raise _refused(
                    path, label, "it is another user's", "Remove it, or choose another name."
                )
            if not lock_file(fd, path, exclusive=True):
                raise _refused(
                    path,
                    label,
                    "it is in use, by another machine or program, or by a machine that has ended "
                    "and whose disk is slow to write the last of it",
                    "Give each machine, and each network of it, a file of its own.",
                )
            _begin(fd, path, label)
        elif not special:
            raise _refused(path, label, "it is no regular file", "Choose another name.")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _begin(fd: int, path: Path, label: str) -> None:
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
    except OSError as error:
        raise _unusable(path, label, error) from error


def _open(path: Path, *, special: bool) -> tuple[int, bool]:
    """The descriptor, and whether the path is a symbolic link."""
    try:
        return os.open(path, _FLAGS | os.O_CREAT | os.O_NOFOLLOW, 0o600), False
    except OSError as error:
        if error.errno != errno.ELOOP or not special:
            raise
    try:
        return os.open(path, _FLAGS), True
    except FileNotFoundError as error:
        # O_NOFOLLOW's error for a link: none is made where it leads.
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def _unusable(path: Path, label: str, error: OSError) -> ConfigError:
    if error.errno == errno.ELOOP:
        return _is_link(path, label)
    remedy = "Choose a file in a directory that is there and that you can write to."
    if error.errno == errno.ENXIO:
        remedy = "Start what reads from the pipe first."
    return _refused(path, label, str(error.strerror), remedy)


def _is_link(path: Path, label: str) -> ConfigError:
    return _refused(path, label, "it is a symbolic link", "Name the file that it leads to.")


def _refused(path: Path, label: str, why: str, remedy: str) -> ConfigError:
    return ConfigError(f"{label}: {path} can't be written: {why}.", remedy=remedy)
