"""A network of a test's own, that the host's knows nothing of. Linux, and root's."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000


class NoNamespace(Exception):
    """None can be made here; the text says why, for `pytest.skip`."""


@contextmanager
def network_namespace() -> Iterator[None]:
    """Put this thread, and what it starts, into a new network namespace with ``lo`` up.

    Other threads stay where they are. Those that are started meanwhile are in the namespace for
    good, and trio keeps its own for later: use none.

    Raises:
        NoNamespace: that is not allowed here.
    """
    try:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NoNamespace(f"there are no network namespaces: {error.strerror}") from error
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if libc.unshare(_CLONE_NEWNET) != 0:
            why = os.strerror(ctypes.get_errno())
            raise NoNamespace(f"a network namespace can't be made: {why}")
        try:
            ip("link", "set", "lo", "up")
            yield
        finally:
            if libc.setns(before, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(before)


@contextmanager
def tap_interface(
    name: str, address: str, *, mtu: int = 1500, several: bool = False
) -> Iterator[None]:
    """A TAP interface that stays, with an address such as ``10.0.0.1/24``.

    Raises:
        NoNamespace: it can't be made here.
    """
    kind = ["multi_queue"] if several else []
    try:
        ip("tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr", *kind)
    except subprocess.CalledProcessError as error:
        raise NoNamespace(
            f"no TAP interface can be made: {error.stderr.decode().strip()}"
        ) from error
    try:
        ip("addr", "add", address, "dev", name)
        ip("link", "set", name, "up", "mtu", str(mtu))
        yield
    finally:
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)


def ip(*words: str) -> None:
    """Run the program of that name."""
    subprocess.run(["ip", *words], check=True, capture_output=True)
