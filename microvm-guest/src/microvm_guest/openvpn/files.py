"""The files that a configuration names: which of them are read, and how.

Whoever wrote the configuration chose the names, and what stands in the files goes to the guest, or
as a password to the server: so those beside the configuration are read, and no others but where its
user says so. One that is no regular file would be waited for, and is not opened to be read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from microvm_guest.openvpn.errors import VpnConfigError

MAX_FILE: Final = 1 << 20

ReadFile = Callable[[str], bytes]

_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_REMEDY: Final = (
    "Move it beside the configuration; or, if you trust whoever wrote that, say --allow-files, or "
    "read_config(..., files_outside=True)."
)


def files_beside(folder: Path, *, outside: bool = False) -> ReadFile:
    """What reads the files that a configuration in this folder names.

    Args:
        folder: Where names begin.
        outside: Whether those that are not beneath it, or hidden, may be read as well.

    Returns:
        A function that gives a file's contents, at most one byte more than `MAX_FILE`. It raises
        OSError where the file can't be read, and VpnConfigError where it is not to be.
    """

    def read(name: str) -> bytes:
        place = folder / name
        if not outside:
            _check_place(folder, place)
        return _contents(place)

    return read


def _check_place(folder: Path, place: Path) -> None:
    if not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder)):
        raise VpnConfigError("it is outside the configuration's folder", remedy=_REMEDY)
    # The folder may be a home, with .ssh in it; links within it are not the configuration's.
    if any(part.startswith(".") for part in Path(os.path.relpath(place, folder)).parts):
        raise VpnConfigError("it is hidden", remedy=_REMEDY)


def _contents(place: Path) -> bytes:
    descriptor = os.open(place, _FLAGS)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise VpnConfigError("it is not a regular file", remedy="Give a file.")
        return file.read(MAX_FILE + 1)
