"""What was found out about programs, kept between runs: asking a QEMU takes 0.1 s.

One JSON file for all. An entry is good for one state of one file, told by modification time and
size, and the cache is never needed: whatever is wrong with it, the programs are asked again. It
holds facts and no paths to execute.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

SCHEMA: Final = 2
MAX_FILE_BYTES: Final = 256 * 1024
MAX_ENTRIES: Final = 32


@attrs.frozen
class ProgramId:
    """A program's file in the state it is in."""

    path: str
    """Without symbolic links."""
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, program: str) -> ProgramId:
        """The id of the file that `program` leads to.

        Raises:
            OSError: there is none.
        """
        path = os.path.realpath(program)
        status = os.stat(path)
        return cls(path, status.st_mtime_ns, status.st_size)


def cache_file(environ: Mapping[str, str]) -> Path | None:
    """Where the cache lies (XDG Base Directory Specification 0.8); None without a home."""
    if own := environ.get("MICROVM_CACHE_DIR"):
        return Path(own) / "programs.json"
    if os.path.isabs(xdg := environ.get("XDG_CACHE_HOME", "")):
        return Path(xdg) / "microvm" / "programs.json"
    if os.path.isabs(home := environ.get("HOME", "")):
        return Path(home) / ".cache" / "microvm" / "programs.json"
    return None


class ProgramCache:
    """The file, read once."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._entries = _read(file) if file is not None else {}

    def get(self, program: ProgramId) -> Any:
        """What is known of a program in this very state, unchecked; None if nothing is."""
        entry = self._entries.get(program.path)
        if not isinstance(entry, dict) or entry.get("stamp") != [program.mtime_ns, program.size]:
            return None
        return entry.get("facts")

    def put(self, found: Mapping[ProgramId, Any]) -> None:
        """Keep what was found out. Failing to is not an error."""
        if self._file is None or not found:
            return
        for program, facts in found.items():
            self._entries.pop(program.path, None)
            stamp = [program.mtime_ns, program.size]
            self._entries[program.path] = {"stamp": stamp, "facts": facts}
        while len(self._entries) > MAX_ENTRIES:
            del self._entries[next(iter(self._entries))]
        _write(self._file, {"schema": SCHEMA, "programs": self._entries})


def _read(file: Path) -> dict[str, Any]:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        content = json.loads(data) if len(data) <= MAX_FILE_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return {}
    programs = content.get("programs")
    return dict(programs) if isinstance(programs, dict) else {}


def _write(file: Path, content: Any) -> None:
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Another process writing at the same time has another name; the last rename wins.
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            with open(fd, "w", encoding="ascii") as opened:
                json.dump(content, opened)
            os.replace(fresh, file)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    except OSError:
        return
