"""`AgentFiles`: the guest's files through its agent.

Each operation is a FILES command: a process in the guest that reads and writes records. What is
read or written on the host is done in a thread, a piece at a time, so that neither side is ever
more than a window ahead.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from microvm.abc import CopyLimits, CopyReport, FileInfo, FileKind, GuestFiles
from microvm.console import visible_text
from microvm.errors import (
    ConfigError,
    GuestError,
    GuestFileError,
    GuestFileNotFound,
    GuestProtocolError,
)
from microvm_guest.files.receiving import LocalTree
from microvm_guest.files.sending import LocalSource
from microvm_guest.protocol.errnos import ENOENT, file_error_text
from microvm_guest.protocol.frames import ProtocolViolation
from microvm_guest.protocol.records import (
    MAX_RECORD,
    Entry,
    InfoRecord,
    Record,
    RecordKind,
    RecordReader,
    decode_entry,
    decode_error,
    decode_info,
)

if TYPE_CHECKING:
    from microvm_guest.process import AgentProcess

PIECE_BYTES: Final = 256 * 1024
"""Read from the host's disk at once."""
_KINDS = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
}

Launch = Callable[[tuple[str, str]], "AbstractAsyncContextManager[AgentProcess]"]
"""Starts a FILES command of an operation and a path; leaving the block lets go of it."""


class AgentFiles(GuestFiles):
    """Files of an agent's guest.

    Args:
        launch: Starts a FILES command.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    @asynccontextmanager
    async def _operation(self, word: str, path: str) -> AsyncIterator[_Operation]:
        if not path or "\0" in path:
            raise ConfigError("A path in the guest is not empty and holds no NUL byte.")
        async with self._launch((word, path)) as process:
            with _violations():
                yield _Operation(process, path)

    async def _do(self, word: str, path: str) -> None:
        """An operation that says nothing but that it is done."""
        async with self._operation(word, path) as operation:
            await operation.finish()

    # --- copies ---------------------------------------------------------------------------

    async def copy_in(self, local: str | os.PathLike[str], guest_path: str) -> CopyReport:
        """Copy into the guest; see `GuestFiles.copy_in`."""
        source = LocalSource(Path(local))
        try:
            first = await trio.to_thread.run_sync(source.next_bytes, PIECE_BYTES)
            async with self._operation("put", guest_path) as operation:
                piece = first
                while piece and await operation.send(piece):
                    piece = await trio.to_thread.run_sync(source.next_bytes, PIECE_BYTES)
                await operation.finish()
        finally:
            source.close()
        return source.report

    async def copy_out(
        self,
        guest_path: str,
        local: str | os.PathLike[str],
        *,
        limits: CopyLimits | None = None,
    ) -> CopyReport:
        """Copy out of the guest; see `GuestFiles.copy_out`."""
        # absolute and lexical: a trailing "." or ".." would be no name
        target = Path(os.path.abspath(local))  # noqa: ASYNC240 - looks at no file
        tree = await trio.to_thread.run_sync(LocalTree, target, limits or CopyLimits())
        try:
            async with self._operation("get", guest_path) as operation:
                await operation.receive_into(tree)
            return await trio.to_thread.run_sync(tree.commit)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(tree.abandon)

    # --- streams --------------------------------------------------------------------------

    @asynccontextmanager
    async def open_read(self, path: str) -> AsyncIterator[FileReader]:
        """A file's bytes as they come; see `GuestFiles.open_read`."""
        async with self._operation("read", path) as operation:
            decode_entry(await operation.expect(RecordKind.FILE), root=True)
            yield FileReader(operation)

    @asynccontextmanager
    async def open_write(self, path: str, *, mode: int = 0o644) -> AsyncIterator[FileWriter]:
        """A file to be; see `GuestFiles.open_write`."""
        if not 0 <= mode <= 0o7777:
            raise ConfigError(f"{mode:o} is no file's mode.")
        begin = Entry(kind=RecordKind.FILE, mode=mode, mtime_ns=0, name=b"")
        async with self._operation("put", path) as operation:
            if not await operation.send(begin.encode()):
                await operation.finish()
            yield FileWriter(operation)
            end = Record(RecordKind.END).encode() + Record(RecordKind.DONE).encode()
            await operation.send(end)
            await operation.finish()

    # --- the rest -------------------------------------------------------------------------

    async def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        """What is at a path; see `GuestFiles.stat`."""
        async with self._operation("stat" if follow else "lstat", path) as operation:
            record = decode_info(await operation.expect(RecordKind.INFO), root=True)
            await operation.finish()
        return _info(record, path.rstrip("/").rpartition("/")[2] or "/")

    async def list_dir(self, path: str, *, max_entries: int = 100_000) -> tuple[FileInfo, ...]:
        """What is in a directory; see `GuestFiles.list_dir`."""
        found: dict[str, FileInfo] = {}
        async with self._operation("list", path) as operation:
            while (record := await operation.next_record()).kind is RecordKind.INFO:
                entry = decode_info(record, root=False)
                name = os.fsdecode(entry.name)
                if name in found:
                    raise ProtocolViolation(f"two entries of one name, {visible_text(entry.name)}")
                found[name] = _info(entry, name)
                if len(found) > max_entries:
                    raise GuestError(
                        f"The guest's directory {path!r} has more than {max_entries} entries.",
                        remedy="Raise max_entries.",
                    )
            await operation.finish(record)
        return tuple(found[name] for name in sorted(found))

    async def mkdir(self, path: str, *, parents: bool = False) -> None:
        """Make a directory; see `GuestFiles.mkdir`."""
        await self._do("mkdirs" if parents else "mkdir", path)

    async def remove(self, path: str, *, tree: bool = False) -> None:
        """Remove; see `GuestFiles.remove`."""
        await self._do("rmtree" if tree else "remove", path)


@contextmanager
def _violations() -> Iterator[None]:
    """What is not in the protocol is the guest's error."""
    try:
        yield
    except ProtocolViolation as violation:
        raise GuestProtocolError(
            f"The guest's agent broke the protocol with a file: it sent {violation}."
        ) from violation


class _Operation:
    """One FILES command: records in and out, and its end."""

    def __init__(self, process: AgentProcess, path: str) -> None:
        self._process = process
        self._path = path
        self._reader = RecordReader()

    async def send(self, records: bytes) -> bool:
        """Send whole records; False once the guest takes no more. `finish` says why."""
        try:
            await self._process.stdin.send_all(records)
        except trio.BrokenResourceError:
            return False
        return True

    async def next_record(self) -> Record:
        """The next record that is no ERROR.

        Raises:
            GuestFileError: it is one.
            ProtocolViolation: the agent ended before it had said all.
        """
        while (record := self._reader.next_record()) is None:
            data = await self._process.stdout.receive_some()
            if not data:
                raise ProtocolViolation("no end of what it had begun to say")
            self._reader.feed(data)
        if record.kind is RecordKind.ERROR:
            raise self._refused(record)
        return record

    async def expect(self, kind: RecordKind) -> Record:
        """The next record, which must be of this kind."""
        record = await self.next_record()
        if record.kind is not kind:
            raise ProtocolViolation(f"a {record.kind.name} record in place of {kind.name}")
        return record

    async def finish(self, last: Record | None = None) -> None:
        """Hold it to its end: DONE, nothing behind it, and exit code 0."""
        self._process.stdin.close()
        record = last if last is not None else await self.next_record()
        if record.kind is not RecordKind.DONE:
            raise ProtocolViolation(f"a {record.kind.name} record in place of DONE")
        if self._reader.buffered or await self._process.stdout.receive_some():
            raise ProtocolViolation("something behind DONE")
        result = await self._process.wait()
        if not result.success:
            raise ProtocolViolation(f"DONE, and then exit code {result.returncode}")

    async def receive_into(self, tree: LocalTree) -> None:
        """All records, made into files in a thread, and the end."""

        def make() -> Record | None:
            """Make what has come; the ERROR record, if one has."""
            while (record := self._reader.next_record()) is not None:
                if record.kind is RecordKind.ERROR:
                    return record
                tree.feed(record)
            return None

        while not tree.done:
            data = await self._process.stdout.receive_some()
            if not data:
                raise ProtocolViolation("no end of what it had begun to say")
            self._reader.feed(data)
            if (refusal := await trio.to_thread.run_sync(make)) is not None:
                raise self._refused(refusal)
        await self.finish(Record(RecordKind.DONE))

    def _refused(self, record: Record) -> GuestFileError:
        number, where = decode_error(record)
        kind = GuestFileNotFound if number == ENOENT else GuestFileError
        place = visible_text(where) or self._path
        error = kind(f"The guest's {place!r}: {file_error_text(number)}.")
        error.errno = number
        return error


class FileReader(trio.abc.ReceiveStream):
    """A file of the guest's that is being read."""

    def __init__(self, operation: _Operation) -> None:
        self._operation = operation
        self._rest = b""
        self._ended = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, or none at the end.

        Raises:
            GuestFileError: the guest could not read on.
        """
        await trio.lowlevel.checkpoint()
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be >= 1")
        with _violations():
            while not self._rest and not self._ended:
                record = await self._operation.next_record()
                if record.kind is RecordKind.DATA:
                    self._rest = record.payload
                elif record.kind is RecordKind.END:
                    self._ended = True
                    await self._operation.finish()
                else:
                    raise ProtocolViolation(f"a {record.kind.name} record within a file")
        end = len(self._rest) if max_bytes is None else max_bytes
        data, self._rest = self._rest[:end], self._rest[end:]
        return data

    async def aclose(self) -> None:
        """Nothing is left to do: leaving the block lets go of the file."""
        await trio.lowlevel.checkpoint()


class FileWriter(trio.abc.SendStream):
    """A file of the guest's that is being written."""

    def __init__(self, operation: _Operation) -> None:
        self._operation = operation

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, as fast as the guest takes them.

        Raises:
            GuestFileError: the guest can't write them: its disk is full, say.
        """
        await trio.lowlevel.checkpoint()
        with memoryview(data).cast("B") as view:
            for start in range(0, len(view), MAX_RECORD):
                record = Record(RecordKind.DATA, bytes(view[start : start + MAX_RECORD]))
                if not await self._operation.send(record.encode()):
                    with _violations():
                        await self._operation.finish()

    async def wait_send_all_might_not_block(self) -> None:
        """At once: how far ahead one may be is `send_all`'s to know."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Nothing is left to do: leaving the block makes the file."""
        await trio.lowlevel.checkpoint()


def _info(record: InfoRecord, name: str) -> FileInfo:
    return FileInfo(
        name=name,
        kind=_KINDS.get(stat.S_IFMT(record.mode), FileKind.OTHER),
        mode=stat.S_IMODE(record.mode),
        uid=record.uid,
        gid=record.gid,
        size=record.size,
        mtime_ns=record.mtime_ns,
        target=os.fsdecode(record.target) if record.target else None,
    )
