"""A few lines of text in which a user keeps what a program is to know: a name, a password."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from microvm.errors import ConfigError

MAX_BYTES: Final = 16 * 1024


def lines_of(text: str) -> list[str]:
    r"""The lines, ended by ``\n`` or ``\r\n`` alone: a password may have anything else in it."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a file, of its first 16 KiB.

    Raises:
        ConfigError: it can't be read, or is no text. Names the file, and nothing that is in it.
    """
    shown = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            return lines_of(file.read(MAX_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{shown} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{shown} can't be read: it is not a text in UTF-8.") from None
