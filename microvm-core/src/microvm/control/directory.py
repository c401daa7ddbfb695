"""Where the sockets of named machines are."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from microvm.errors import ConfigError
from microvm.unix_sockets import SocketDirectory, is_trusted

if TYPE_CHECKING:
    from collections.abc import Mapping

SUFFIX: Final = ".sock"


def runtime_directory(environment: Mapping[str, str]) -> Path:
    """The directory of this user's machines; it need not be there.

    `$XDG_RUNTIME_DIR` (XDG Base Directory Specification), else where systemd would have put that,
    else a directory of the user's own among the temporary files.
    """
    named = environment.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(named):
        return Path(named, "microvm")
    usual = Path(f"/run/user/{os.geteuid()}")
    if usual.is_dir() and is_trusted(usual.stat().st_uid):
        return usual / "microvm"
    return Path(tempfile.gettempdir(), f"microvm-{os.geteuid()}")


def open_directory(*, create: bool) -> SocketDirectory | None:
    """The directory, pinned; None if it is not there and not to be made.

    Raises:
        ConfigError: it can't be made, or others could see into it.
    """
    path = runtime_directory(os.environ)
    try:
        if create:
            path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except FileNotFoundError:
        if not create:
            return None
        raise ConfigError(
            f"name: {path.parent} is not there, and named machines are found below it.",
            remedy="Create it (mode 0700), or set XDG_RUNTIME_DIR to a directory of your own.",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"name: {path} can't be used: {error.strerror}.",
            remedy="Set XDG_RUNTIME_DIR to a directory of your own.",
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ConfigError(
            f"name: {path} is not a directory of your own alone (mode 0700).",
            remedy="Remove it, or set XDG_RUNTIME_DIR to a directory of your own.",
        )
    return SocketDirectory(path, "name")


def machine_names(directory: SocketDirectory) -> list[str]:
    """Every name that has a socket, sorted; its machine may be long gone."""
    from microvm.config import is_machine_name

    names = [name.removesuffix(SUFFIX) for name in os.listdir(directory.path)]
    return sorted(
        name
        for name in names
        if is_machine_name(name) and directory.status(f"{name}{SUFFIX}") is not None
    )
