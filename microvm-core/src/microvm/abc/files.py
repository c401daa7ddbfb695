"""Files of the guest, as its user handles them."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import attrs

from microvm.errors import GuestError, GuestFileNotFound

if TYPE_CHECKING:
    import os
    from contextlib import AbstractAsyncContextManager

    from trio.abc import ReceiveStream, SendStream

MAX_READ_BYTES: Final = 64 * 1024 * 1024
"""What `read_bytes` keeps in memory unless it is told otherwise."""


class FileKind(enum.StrEnum):
    """What something in the guest's file system is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"
    """A device, a socket or a pipe."""


@attrs.frozen(kw_only=True)
class FileInfo:
    """What the guest says of one of its files. It may be wrong the moment after, or a lie."""

    name: str
    """In its directory; bytes that are not UTF-8 are surrogates, as `os.fsdecode` has them."""
    kind: FileKind
    mode: int
    """Permission bits, set-user-id and its like among them."""
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: str | None = None
    """Of a symlink: where it leads."""


@attrs.frozen(kw_only=True)
class CopyLimits:
    """How much a copy from the guest may be: the guest is not trusted to stop by itself.

    Past one of these the copy ends with `GuestError`, and nothing of it stays.
    """

    max_bytes: int = attrs.field(default=16 * 1024**3, validator=attrs.validators.ge(0))
    max_entries: int = attrs.field(default=100_000, validator=attrs.validators.ge(1))
    """Files, directories and symlinks, and those that are skipped."""
    max_depth: int = attrs.field(
        default=64, validator=[attrs.validators.ge(1), attrs.validators.le(128)]
    )
    """Directories within directories."""


@attrs.frozen(kw_only=True)
class CopyReport:
    """What a copy has made."""

    entries: int
    """Files, directories and symlinks."""
    bytes: int
    """Of files' contents."""
    skipped: tuple[str, ...] = ()
    """Names of what is no file, directory or symlink: a device, a socket, a pipe."""


class GuestFiles(ABC):
    """Files of the guest. Paths are absolute, or from the guest's ``/``.

    Each operation is a process of the guest's with root's rights, so a slow disk holds up nothing
    else. All of them raise, beside what they say themselves:

    Raises:
        GuestFileNotFound: there is nothing at that path.
        GuestFileError: the guest's system refused; its ``errno`` is the guest's.
        GuestGone: the machine or its agent ended first.
        GuestError: what the guest's agent sent is not what it may send, or too much.
    """

    @abstractmethod
    async def copy_in(self, local: str | os.PathLike[str], guest_path: str) -> CopyReport:
        """Copy a file or a whole directory of the host's to `guest_path`, which is its name there.

        Modes, times and symlinks stay as they are; the owner is root. `local` itself may be a
        symlink and is followed, those within are copied as symlinks. It appears under its name
        whole or not at all: it replaces a file, or an empty directory, but never a directory with
        something in it. Cancelling leaves what was there.

        Raises:
            OSError: something on the host can't be read.
        """

    @abstractmethod
    async def copy_out(
        self,
        guest_path: str,
        local: str | os.PathLike[str],
        *,
        limits: CopyLimits | None = None,
    ) -> CopyReport:
        """Copy a file or a whole directory of the guest's to `local`, which is its name here.

        As `copy_in`, the other way. The guest is not trusted: whatever it sends, everything is
        made beneath `local` and nowhere else. Set-user-id bits are dropped, and your umask is
        heeded. A symlink is copied as it is and may lead anywhere: don't follow one that came out
        of a guest.

        Raises:
            OSError: something on the host can't be written, or `local` is there and is a
                directory with something in it.
        """

    @abstractmethod
    def open_read(self, path: str) -> AbstractAsyncContextManager[ReceiveStream]:
        """A file's bytes as they come, however many; the guest waits for who reads."""

    @abstractmethod
    def open_write(
        self, path: str, *, mode: int = 0o644
    ) -> AbstractAsyncContextManager[SendStream]:
        """A stream whose bytes become the file when the block is left.

        Until then, and for good if it is left by an error or a cancellation, what was at `path`
        stays. On file systems whose files are the kernel's own, such as ``/proc``, the bytes are
        written into the file that is there.
        """

    @abstractmethod
    async def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        """What is at `path`; a symlink itself, unless it is to be followed."""

    @abstractmethod
    async def list_dir(self, path: str, *, max_entries: int = 100_000) -> tuple[FileInfo, ...]:
        """What is in a directory, sorted by name."""

    @abstractmethod
    async def mkdir(self, path: str, *, parents: bool = False) -> None:
        """Make a directory; with `parents` also those above, and one that is there is fine."""

    @abstractmethod
    async def remove(self, path: str, *, tree: bool = False) -> None:
        """Remove a file, a symlink or an empty directory; with `tree` whatever is in it.

        Cancelling stops it where it is.
        """

    async def exists(self, path: str) -> bool:
        """Whether there is something at `path`; a symlink counts if what it leads to is there."""
        try:
            await self.stat(path)
        except GuestFileNotFound:
            return False
        return True

    async def read_bytes(self, path: str, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """A whole file.

        Raises:
            GuestError: it has more than `max_bytes`.
        """
        data = bytearray()
        async with self.open_read(path) as stream:
            async for chunk in stream:
                data += chunk
                if len(data) > max_bytes:
                    raise GuestError(
                        f"The guest's file {path!r} has more than {max_bytes} bytes.",
                        remedy="Raise max_bytes, or read it as it comes with open_read.",
                    )
        return bytes(data)

    async def read_text(
        self, path: str, *, encoding: str = "utf-8", max_bytes: int = MAX_READ_BYTES
    ) -> str:
        """A whole file, as text."""
        return (await self.read_bytes(path, max_bytes=max_bytes)).decode(encoding)

    async def write_bytes(
        self, path: str, data: bytes | bytearray | memoryview, *, mode: int = 0o644
    ) -> None:
        """Make or replace a file; see `open_write`."""
        async with self.open_write(path, mode=mode) as stream:
            await stream.send_all(data)

    async def write_text(
        self, path: str, text: str, *, encoding: str = "utf-8", mode: int = 0o644
    ) -> None:
        """Make or replace a file; see `open_write`."""
        await self.write_bytes(path, text.encode(encoding), mode=mode)
