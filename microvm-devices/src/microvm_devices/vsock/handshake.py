r"""The first line a client of the AF_UNIX socket says: ``CONNECT <port>\n``. Pure parsing.

Firecracker's dialect, which Cloud Hypervisor speaks too: the word in any case, one decimal
number, white space between and, forgivingly, around the number; answered by ``OK <host port>\n``
or by nothing but the end of the connection. What follows the newline belongs to the guest.
"""

from __future__ import annotations

import re
from typing import Final

from microvm_devices.vsock.limits import MAX_PORT

MAX_LINE_BYTES: Final = 32
"""As in Firecracker; the longest sensible line has 19."""

_LINE: Final = re.compile(rb"connect[ \t]+([0-9]{1,20})[ \t]*\r?\n", re.IGNORECASE)


class BadConnectLine(ValueError):
    """The client said something else."""


class ConnectLine:
    """Takes the line as it comes, in pieces of any size."""

    def __init__(self) -> None:
        self._line = b""
        self.port: int | None = None
        """The guest's port, once the line is complete."""

    def feed(self, data: bytes) -> int:
        """Take the next bytes.

        Returns:
            How many of them belong to the line; all until it is complete.

        Raises:
            BadConnectLine: this is no such line.
        """
        if self.port is not None:
            return 0
        newline = data.find(b"\n")
        taken = len(data) if newline < 0 else newline + 1
        self._line += data[:taken]
        if len(self._line) > MAX_LINE_BYTES:
            raise BadConnectLine(f"a line of more than {MAX_LINE_BYTES} bytes")
        if newline >= 0:
            match = _LINE.fullmatch(self._line)
            port = int(match[1]) if match else None
            if port is None or port > MAX_PORT:
                raise BadConnectLine(f"{self._line!r} is not 'CONNECT <port>'")
            self.port = port
        return taken
