"""The guest agent's C sources and how they become one static program.

The sources travel inside the package, so that a wheel, a source distribution and an editable
checkout can all build a guest image. Nothing here runs a compiler: the image builder and the
tests do, with the argument vectors made here.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

SOURCE_DIR = Path(__file__).parent
"""Where `SOURCES` and `HEADERS` live."""

SOURCES: tuple[str, ...] = (
    "main.c",
    "loop.c",
    "connection.c",
    "requests.c",
    "fields.c",
    "command.c",
    "input.c",
    "launch.c",
    "exec.c",
    "files.c",
    "tree_send.c",
    "tree_take.c",
    "tree_remove.c",
    "records.c",
    "jobs.c",
    "job_log.c",
    "notice.c",
    "users.c",
    "session.c",
    "status.c",
    "clock.c",
    "vsock.c",
    "system.c",
    "dhcp.c",
    "network.c",
    "root.c",
    "shutdown.c",
    "forward.c",
    "acceptor.c",
    "address.c",
    "relay.c",
    "udp_relay.c",
    "resolver.c",
    "socks5_message.c",
    "socks5.c",
)
"""Every translation unit, by name within `SOURCE_DIR`."""

HEADERS: tuple[str, ...] = (
    "wire.h",
    "bytes.h",
    "loop.h",
    "connection.h",
    "requests.h",
    "fields.h",
    "command.h",
    "input.h",
    "launch.h",
    "exec.h",
    "files.h",
    "tree.h",
    "records.h",
    "jobs.h",
    "job_log.h",
    "notice.h",
    "users.h",
    "session.h",
    "status.h",
    "clock.h",
    "vsock.h",
    "system.h",
    "dhcp.h",
    "network.h",
    "root.h",
    "shutdown.h",
    "forward.h",
    "acceptor.h",
    "address.h",
    "relay.h",
    "udp_relay.h",
    "resolver.h",
    "socks5_message.h",
    "socks5.h",
)
"""What the sources include, by name within `SOURCE_DIR`."""

WARNINGS: tuple[str, ...] = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")

CFLAGS: tuple[str, ...] = (
    *WARNINGS,
    "-Os",
    "-static",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-asynchronous-unwind-tables",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    "-s",
)
"""Small, static and the same bytes from the same compiler: no build id, no debug sections."""

COMPILERS: tuple[str, ...] = ("musl-gcc", "gcc")
"""By preference: the agent has less than 160 KiB with musl, about seven times that with glibc."""


@functools.cache
def build_id() -> str:
    """Sixteen hex digits that name these very sources; the agent reports them in its HELLO."""
    digest = hashlib.sha256()
    for name in (*SOURCES, *HEADERS):
        digest.update(name.encode() + b"\0" + (SOURCE_DIR / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def source_argv() -> list[str]:
    """The arguments that any build of the agent shares: its build id and its sources."""
    define = f'-DMICROVM_AGENT_BUILD="{build_id()}"'
    return [define, *(str(SOURCE_DIR / name) for name in SOURCES)]


def compile_argv(cc: str, output: Path) -> list[str]:
    """The one command that compiles and links the agent.

    Args:
        cc: A compiler driver, one of `COMPILERS` or a path to one.
        output: Where the program goes. It is about 60 KiB, stripped, mode 0755.
    """
    return [cc, *CFLAGS, "-o", str(output), *source_argv()]
