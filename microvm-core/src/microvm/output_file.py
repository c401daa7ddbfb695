"""Files that a machine writes for its user: a console, a capture. What is in them is private.

The path may be in a folder that others write to, and what is there may be theirs. So a regular file
must be our own user's, whatever its mode was it is ours alone from then on, and no symbolic link
leads to one. Nothing of a file is changed until it is sure that it may be.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from microvm.errors import ConfigError

_FLAGS: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Without O_NONBLOCK, opening a pipe would wait for its reader."""


def open_output_file(path: Path, label: str, *, special: bool = False) -> int:
    """Open a file to write to; one that is not there is made, mode 0600.

    One that is there is as it was: `begin_output_file` comes next.

    Args:
        path: Where.
        label: What the user called the path; errors begin with it.
        special: Whether a pipe, a terminal or another device will do. A symbolic link may lead to
            one, as ``/dev/stdout`` does.

    Returns:
        The descriptor, which does not block.

    Raises:
        ConfigError: it can't be written, or is not ours.
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
        elif not special:
            raise _refused(path, label, "it is no regular file", "Choose another name.")
    except BaseException:
        os.close(fd)
        raise
    return fd


def begin_output_file(fd: int, path: Path, label: str) -> None:
    """Make a regular file empty, and its user's alone (0600); anything else stays as it is.

    Raises:
        ConfigError: that can't be done.
    """
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
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
