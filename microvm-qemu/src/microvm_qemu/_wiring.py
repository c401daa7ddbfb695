"""The sockets between us and a QEMU: made before it starts, its ends closed once it has them.

They are socket pairs: nothing has a name in the file system, so nothing has to be cleaned up after
a `kill -9`, and no other user can find it. But a network's vhost-user wants a socket that QEMU has
connected by a name (7.2 refuses descriptors there: "does not support FD passing"). So that one has
a name for the moment it takes, in a folder that is ours alone.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import TypeVar

from microvm.errors import BackendError
from microvm_qemu._command import Wiring

T = TypeVar("T")


class Cables:
    """Both ends of everything: monitor, console, standard error, and one a device.

    Closing an end again, or after its user did, is fine.
    """

    def __init__(self, device_count: int, named: Collection[int] = ()) -> None:
        """Open all of it.

        Args:
            device_count: How many devices there are.
            named: Which of them QEMU connects to by a name.

        Raises:
            BackendError: there are no descriptors left, or no folder can be made.
        """
        self._near: list[socket.socket] = []
        self._far: list[socket.socket] = []
        self._meetings: dict[int, _Meeting] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            try:
                for index in range(-3, device_count):
                    if index in named:
                        self._meetings[index] = _Meeting()
                        continue
                    near, far = socket.socketpair()
                    self._near.append(near)
                    self._far.append(far)
            except OSError as error:
                raise BackendError(
                    f"No connection to QEMU could be made: {error.strerror}.",
                    remedy="The limit on open files is reached (ulimit -n).",
                ) from error
            undo.pop_all()
        self.monitor, self.console, self.stderr, *devices = self._near
        self._pairs = devices
        self._device_count = device_count

    async def device(self, index: int) -> socket.socket:
        """Our end of a vhost-user connection, by the plan's order; the caller's to close."""
        if index in self._meetings:
            return await self._meetings[index].accept()
        return self._in_order(self._pairs)[index]

    @property
    def wiring(self) -> Wiring:
        """QEMU's ends, by number or name, for its command line."""
        monitor, console, _, *pairs = (end.fileno() for end in self._far)
        devices: list[int | str] = [0] * self._device_count
        for index, fd in self._in_order(pairs).items():
            devices[index] = fd
        for index, meeting in self._meetings.items():
            devices[index] = meeting.path
        return Wiring(monitor=monitor, console=console, devices=tuple(devices))

    def _in_order(self, pairs: Sequence[T]) -> dict[int, T]:
        """What there is one of for each device without a name, by the device's index."""
        unnamed = (index for index in range(self._device_count) if index not in self._meetings)
        return dict(zip(unnamed, pairs, strict=True))

    @property
    def inherited(self) -> tuple[int, ...]:
        """The numbers in `wiring`."""
        wiring = self.wiring
        devices = (end for end in wiring.devices if isinstance(end, int))
        return (wiring.monitor, wiring.console, *devices)

    @property
    def far_stderr(self) -> int:
        """The end that QEMU writes its messages to."""
        return self._far[2].fileno()

    def close_far(self) -> None:
        """QEMU has its own now. With ours open, nothing would end when QEMU does."""
        for end in self._far:
            end.close()

    def close(self) -> None:
        """Close what is still open of it."""
        for end in (*self._near, *self._far):
            end.close()
        for meeting in self._meetings.values():
            meeting.close()


class _Meeting:
    """A listening socket for one connection, in a folder of its own."""

    def __init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._folder: str | None = None
        try:
            self._folder = tempfile.mkdtemp(prefix="microvm-")  # of mode 0700
            self.path = os.path.join(self._folder, "qemu")
            self._listener.bind(self.path)
            self._listener.listen(1)
        except OSError as error:
            where = self._folder or error.filename or "the folder for temporary files"
            self.close()
            raise BackendError(
                f"No socket can be made in {where}: {error.strerror or error}.",
                remedy="Set TMPDIR to a folder with a short name that you may write to.",
            ) from error

    async def accept(self) -> socket.socket:
        """The connection, when it comes; its name is gone then."""
        import trio

        listener = trio.socket.from_stdlib_socket(self._listener.dup())
        with listener:
            peer, _ = await listener.accept()
        self.close()
        # In blocking mode, as the end of a pair is: whoever serves it makes of it what they need.
        return socket.socket(fileno=peer.detach())

    def close(self) -> None:
        """Take the name away, and stop listening; again is fine."""
        self._listener.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
