"""The bounds of the vsock device, and why they are what they are.

They add up: backlogs hold at most `FULL_WINDOWS` x `BUF_ALLOC` + the rest x `SMALL_BUF_ALLOC`, 31
MiB, whatever the guest does; packets owed to the guest are one of each kind a connection, and
`MAX_OWED_RSTS`.
"""

from __future__ import annotations

from typing import Final

MAX_CONNECTIONS: Final = 1023
"""As Firecracker has it. In-process streams take two descriptors each."""
BUF_ALLOC: Final = 256 * 1024
"""Credit given to a connection, and so the most that is kept for its reader: four of Linux's
largest packets, so that the guest sends on while its host has not told it of the last ones."""
FULL_WINDOWS: Final = 64
"""How many connections at once get `BUF_ALLOC`."""
SMALL_BUF_ALLOC: Final = 16 * 1024
"""What the others get."""
MAX_OWED_RSTS: Final = 256
"""A guest that makes us owe it more than this, by taking none, is not listened to meanwhile."""
LISTEN_BACKLOG: Final = 128
"""Connections accepted for a listener before its program looks, as with listen(2)."""
FIRST_HOST_PORT: Final = 1 << 30
LAST_HOST_PORT: Final = (1 << 31) - 1
"""The host's ports of connections that the host begins."""
MAX_PORT: Final = (1 << 32) - 1
SHUTDOWN_TIMEOUT_S: Final = 2.0
"""How long a guest may take to confirm the end of a connection; then it gets an RST."""
CONNECT_TIMEOUT_S: Final = 2.0
"""How long a guest may take to answer a client of the AF_UNIX socket, as Firecracker has it. A
program in this process has its own cancel scope."""
CONNECT_LINE_TIMEOUT_S: Final = 5.0
"""How long such a client may take to say ``CONNECT <port>``."""
MAX_UNNAMED_CLIENTS: Final = 128
"""Clients of the AF_UNIX socket that have not said it yet; the oldest makes room for the next."""
TX_BATCH: Final = 64
"""Packets taken from the guest before other tasks are let run: up to 4 MiB, 1 to 2 ms."""
RX_BATCH: Final = 256
"""Packets given to the guest likewise."""
READ_QUANTUM: Final = 16
"""Packets that one connection fills before the next one has its turn."""
