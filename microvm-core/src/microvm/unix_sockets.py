"""AF_UNIX sockets at paths: who owns them, what may be replaced, and names too long to say.

The directory is opened once and pinned, so that a name means the same file from beginning to end
even if somebody moves the directory. A socket is 0600 from its first moment (its mode is set
before it is bound). Whoever serves or uses one must be our own user, or root, who may do anything
anyway. Nothing is ever unlinked but a socket of our own that nobody listens on.

A socket address holds 107 bytes; a longer path is said as ``/proc/self/fd/<directory>/<name>``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from microvm.errors import ConfigError

if TYPE_CHECKING:
    import trio

MAX_ADDRESS_BYTES: Final = 107
LOCK_TIMEOUT_S: Final = 2.0
_LOCK_RETRY_S: Final = 0.01
_UCRED: Final = struct.Struct("3i")
"""struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)."""


def is_trusted(uid: int) -> bool:
    """Whether a user may be on the other end of our sockets."""
    return uid in (os.geteuid(), 0)


def peer_uid(sock: socket.socket | trio.socket.SocketType) -> int:
    """The user on the other end: who connected, or who called listen(2)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(credentials)[1]
    return uid


class SocketDirectory:
    """The directory of a socket and its relatives, pinned.

    Args:
        path: The directory.
        label: What the user called the path; errors begin with it.

    Raises:
        ConfigError: it is not there, or others could replace what is in it.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self._label = label
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(
                f"{self._label}: directory {path} can't be opened: {error.strerror}.",
                remedy="Create it, for your own user alone (mode 0700).",
            ) from error
        status = os.fstat(self._fd)
        shared = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if shared or not is_trusted(status.st_uid):
            self.close()
            raise ConfigError(
                f"{self._label}: others can replace the sockets in {path}.",
                remedy="Use a directory of your own that only you can write (mode 0700).",
            )

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._fd)

    def address(self, name: str) -> str:
        """What to bind or connect to for a name in the directory.

        Raises:
            ConfigError: no way to say it is short enough.
        """
        plain = os.path.abspath(self.path / name)
        if len(os.fsencode(plain)) <= MAX_ADDRESS_BYTES:
            return plain
        pinned = f"/proc/self/fd/{self._fd}/{name}"
        if len(os.fsencode(pinned)) <= MAX_ADDRESS_BYTES:
            return pinned
        raise ConfigError(
            f"{self._label}: the name {name!r} is too long for a socket.",
            remedy=f"A path of up to {MAX_ADDRESS_BYTES} bytes always works.",
        )

    def status(self, name: str) -> os.stat_result | None:
        """What a name is, a symbolic link being one; None if there is nothing."""
        try:
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def connect(self, name: str) -> socket.socket | None:
        """Connect to the socket of that name, at once or not at all.

        Returns:
            The socket; None if there is none that serves us now: missing, stale, busy, of
            another user, or something else than a socket.
        """
        status = self.status(name)
        if status is None or not stat.S_ISSOCK(status.st_mode) or not is_trusted(status.st_uid):
            return None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            # Does not wait: a full backlog is EAGAIN (Firecracker once stalled here).
            sock.connect(self.address(name))
            if is_trusted(peer_uid(sock)):
                return sock
        except OSError:
            pass
        except BaseException:
            sock.close()
            raise
        sock.close()
        return None

    async def listen(self, name: str, backlog: int) -> BoundSocket:
        """Listen at a name, in place of a socket of ours that nobody listens on any more.

        Raises:
            ConfigError: something is there that must not be replaced.
        """
        import trio  # connecting does without

        with trio.move_on_after(LOCK_TIMEOUT_S) as bound:
            await self._lock()
        if bound.cancelled_caught:
            raise ConfigError(
                f"{self._label}: another program holds a lock on directory {self.path}.",
                remedy="Use a directory of your own.",
            )
        # From here to the unlock nothing waits, so two starters can't meet in between.
        try:
            self._clear_stale(name)
            return BoundSocket(self, name, self._bind(name, backlog))
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    async def _lock(self) -> None:
        import trio

        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await trio.sleep(_LOCK_RETRY_S)
            else:
                return

    def _clear_stale(self, name: str) -> None:
        status = self.status(name)
        if status is None:
            return
        path = self.path / name
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise ConfigError(
                f"{self._label}: {path} exists and is not a socket of yours.",
                remedy="Choose another path, or remove what is there.",
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.address(name))
            except ConnectionRefusedError:
                os.unlink(name, dir_fd=self._fd)
                return
            except FileNotFoundError:
                return
            except OSError:
                # A full backlog, or a socket of another type: somebody's in any case.
                pass
        raise ConfigError(
            f"{self._label}: {path} is in use by another program.",
            remedy="Give each machine a path of its own.",
        )

    def _bind(self, name: str, backlog: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(self.address(name))
            try:
                sock.listen(backlog)
            except BaseException:
                self.unlink(name)
                raise
        except OSError as error:
            sock.close()
            raise ConfigError(
                f"{self._label}: can't listen at {self.path / name}: {error.strerror}.",
                remedy="Choose a path in a directory that you can write to.",
            ) from error
        except BaseException:
            sock.close()
            raise
        return sock

    def unlink(self, name: str) -> None:
        """Remove a name."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)


class BoundSocket:
    """A listening socket and its name; the name goes with it."""

    def __init__(self, directory: SocketDirectory, name: str, sock: socket.socket) -> None:
        self.sock = sock
        self._directory = directory
        self._name = name
        self._identity = _identity(directory.status(name))

    def close(self) -> None:
        """Stop listening, and remove the name if it is still this socket's."""
        self.sock.close()
        if _identity(self._directory.status(self._name)) == self._identity:
            self._directory.unlink(self._name)


def _identity(status: os.stat_result | None) -> tuple[int, int] | None:
    return None if status is None else (status.st_dev, status.st_ino)
