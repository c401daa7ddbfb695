"""The sockets between us and a QEMU: made before it starts, its ends closed once it has them.

All are socket pairs. Nothing has a name in the file system, so nothing has to be cleaned up after
a `kill -9`, and no other user can find it.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from microvm.errors import BackendError
from microvm_qemu._command import Wiring


class Cables:
    """Both ends of everything: monitor, console, standard error, and one a device.

    Closing an end again, or after its user did, is fine.
    """

    def __init__(self, device_count: int) -> None:
        """Open all of it.

        Raises:
            BackendError: there are no descriptors left.
        """
        self._near: list[socket.socket] = []
        self._far: list[socket.socket] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            try:
                for _ in range(3 + device_count):
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
        self.devices = tuple(devices)
        """Our ends of the vhost-user connections, in the plan's order."""

    @property
    def wiring(self) -> Wiring:
        """QEMU's ends, by number, for its command line."""
        monitor, console, _, *devices = (end.fileno() for end in self._far)
        return Wiring(monitor=monitor, console=console, devices=tuple(devices))

    @property
    def inherited(self) -> tuple[int, ...]:
        """The numbers in `wiring`."""
        wiring = self.wiring
        return (wiring.monitor, wiring.console, *wiring.devices)

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
