"""The files of a machine's guest: they wait for the guest, and know how a machine ended."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from microvm.abc.files import CopyLimits, CopyReport, FileInfo, GuestFiles
from microvm.errors import GuestGone

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio.abc import ReceiveStream, SendStream

    from microvm.abc.guest import Guest


class MachineFiles(GuestFiles):
    """As the guest's own `Guest.files`, once there is a guest.

    Args:
        ready: Waits for it.
        explain: Adds to an error how the machine ended.
    """

    def __init__(
        self,
        ready: Callable[[], Awaitable[Guest]],
        explain: Callable[[GuestGone], Awaitable[GuestGone]],
    ) -> None:
        self._ready = ready
        self._explain = explain

    @asynccontextmanager
    async def _files(self) -> AsyncIterator[GuestFiles]:
        files = (await self._ready()).files
        try:
            yield files
        except GuestGone as error:
            raise await self._explain(error) from error

    async def copy_in(self, local: str | os.PathLike[str], guest_path: str) -> CopyReport:
        """As `GuestFiles.copy_in`."""
        async with self._files() as files:
            return await files.copy_in(local, guest_path)

    async def copy_out(
        self,
        guest_path: str,
        local: str | os.PathLike[str],
        *,
        limits: CopyLimits | None = None,
    ) -> CopyReport:
        """As `GuestFiles.copy_out`."""
        async with self._files() as files:
            return await files.copy_out(guest_path, local, limits=limits)

    @asynccontextmanager
    async def open_read(self, path: str) -> AsyncIterator[ReceiveStream]:
        """As `GuestFiles.open_read`."""
        async with self._files() as files, files.open_read(path) as stream:
            yield stream

    @asynccontextmanager
    async def open_write(self, path: str, *, mode: int = 0o644) -> AsyncIterator[SendStream]:
        """As `GuestFiles.open_write`."""
        async with self._files() as files, files.open_write(path, mode=mode) as stream:
            yield stream

    async def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        """As `GuestFiles.stat`."""
        async with self._files() as files:
            return await files.stat(path, follow=follow)

    async def list_dir(self, path: str, *, max_entries: int = 100_000) -> tuple[FileInfo, ...]:
        """As `GuestFiles.list_dir`."""
        async with self._files() as files:
            return await files.list_dir(path, max_entries=max_entries)

    async def mkdir(self, path: str, *, parents: bool = False) -> None:
        """As `GuestFiles.mkdir`."""
        async with self._files() as files:
            await files.mkdir(path, parents=parents)

    async def remove(self, path: str, *, tree: bool = False) -> None:
        """As `GuestFiles.remove`."""
        async with self._files() as files:
            await files.remove(path, tree=tree)
