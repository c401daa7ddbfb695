"""The guest's files without async."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from microvm.abc.files import MAX_READ_BYTES
from microvm.sync._streams import StreamWriter, reader

if TYPE_CHECKING:
    from microvm.abc import CopyLimits, CopyReport, FileInfo
    from microvm.abc import GuestFiles as AsyncGuestFiles
    from microvm.sync._loop import BackgroundLoop


class GuestFiles:
    """Files of the guest; see `microvm.abc.GuestFiles` for what each does and raises."""

    def __init__(self, loop: BackgroundLoop, files: AsyncGuestFiles) -> None:
        self._loop = loop
        self._files = files

    def copy_in(self, local: str | os.PathLike[str], guest_path: str) -> CopyReport:
        """Copy a file or a whole directory of the host's to `guest_path`."""
        return self._loop.call(partial(self._files.copy_in, local, guest_path))

    def copy_out(
        self,
        guest_path: str,
        local: str | os.PathLike[str],
        *,
        limits: CopyLimits | None = None,
    ) -> CopyReport:
        """Copy a file or a whole directory of the guest's to `local`."""
        return self._loop.call(partial(self._files.copy_out, guest_path, local, limits=limits))

    @contextmanager
    def open_read(self, path: str) -> Iterator[io.BufferedReader]:
        """A file's bytes as they come, as a binary file."""
        with self._loop.hold(partial(self._files.open_read, path)) as stream:
            yield reader(self._loop, stream)

    @contextmanager
    def open_write(self, path: str, *, mode: int = 0o644) -> Iterator[StreamWriter]:
        """A binary file that becomes the guest's when the block is left, unless by an error."""
        with self._loop.hold(partial(self._files.open_write, path, mode=mode)) as stream:
            yield StreamWriter(self._loop, stream)

    def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        """What is at `path`; a symlink itself, unless it is to be followed."""
        return self._loop.call(partial(self._files.stat, path, follow=follow))

    def list_dir(self, path: str, *, max_entries: int = 100_000) -> tuple[FileInfo, ...]:
        """What is in a directory, sorted by name."""
        return self._loop.call(partial(self._files.list_dir, path, max_entries=max_entries))

    def mkdir(self, path: str, *, parents: bool = False) -> None:
        """Make a directory; with `parents` also those above, and one that is there is fine."""
        self._loop.call(partial(self._files.mkdir, path, parents=parents))

    def remove(self, path: str, *, tree: bool = False) -> None:
        """Remove a file, a symlink or an empty directory; with `tree` whatever is in it."""
        self._loop.call(partial(self._files.remove, path, tree=tree))

    def exists(self, path: str) -> bool:
        """Whether there is something at `path`."""
        return self._loop.call(partial(self._files.exists, path))

    def read_bytes(self, path: str, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """A whole file."""
        return self._loop.call(partial(self._files.read_bytes, path, max_bytes=max_bytes))

    def read_text(
        self, path: str, *, encoding: str = "utf-8", max_bytes: int = MAX_READ_BYTES
    ) -> str:
        """A whole file, as text."""
        work = partial(self._files.read_text, path, encoding=encoding, max_bytes=max_bytes)
        return self._loop.call(work)

    def write_bytes(
        self, path: str, data: bytes | bytearray | memoryview, *, mode: int = 0o644
    ) -> None:
        """Make or replace a file."""
        self._loop.call(partial(self._files.write_bytes, path, data, mode=mode))

    def write_text(
        self, path: str, text: str, *, encoding: str = "utf-8", mode: int = 0o644
    ) -> None:
        """Make or replace a file."""
        work = partial(self._files.write_text, path, text, encoding=encoding, mode=mode)
        self._loop.call(work)
