"""One run of the lab: QEMU from its start to its end, and the command's words on the way.

QEMU dies with us, however we end: the kernel sends it SIGKILL (prctl(2), PR_SET_PDEATHSIG).
Nothing lies on disk meanwhile: the initramfs is memory that QEMU inherits.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, BinaryIO

from tools.lab.words import Words

if TYPE_CHECKING:
    from tools.lab.console import Console

CHUNK = 65536
BOOT_BOUND_S = 120.0
"""Some thirty times what it takes on an idle host."""
_NOT_ORPHANED = '[ "$PPID" = "$0" ] && exec "$@"'
"""Run between the request for the signal and QEMU: we may have died before the request."""


class LabFailed(Exception):
    """The lab did not come to the command's end; says what happened."""


class OutOfTime(Exception):
    """The bound was hit while the command ran."""


class Wires:
    """The pipes into which QEMU writes, and the initramfs it reads; closed with the block."""

    def __init__(self, stack: ExitStack, initrd: bytes) -> None:
        self.initrd = _in_memory(stack, initrd)
        self.writers: dict[str, int] = {}
        self.readers: dict[str, BinaryIO] = {}
        for name in ("console", "out", "err"):
            reader, self.writers[name] = os.pipe()
            self.readers[name] = stack.enter_context(os.fdopen(reader, "rb", buffering=0))

    @property
    def inherited(self) -> list[int]:
        """The descriptors that QEMU needs, under the same numbers."""
        return [self.initrd, *self.writers.values()]


def follow(argv: Sequence[str], wires: Wires, token: str, console: Console, within: float) -> int:
    """Run QEMU until the command has ended; return its exit code.

    The command's words go to our stdout and stderr as they come. Main thread only: the parent
    death signal is sent when the thread that started QEMU ends.

    Raises:
        LabFailed: QEMU or the kernel in it did not do as they should.
        OutOfTime: the command had not ended after `within` seconds.
    """
    words = {"out": Words(token), "err": Words(token)}
    sinks = {"out": sys.stdout.buffer, "err": sys.stderr.buffer}
    began = time.monotonic()

    def deadline() -> float:
        up = console.up_after_s is not None
        return began + (within if up else min(within, BOOT_BOUND_S))

    with _running(argv, wires):
        for name, data in _arriving(wires.readers, deadline):
            if name == "console":
                console.feed(data)
                continue
            sinks[name].write(words[name].feed(data))
            sinks[name].flush()
            codes = [stream.exit_code for stream in words.values()]
            if None not in codes:
                return codes[0] or 0
    for name, stream in words.items():
        sinks[name].write(stream.rest())
        sinks[name].flush()
    if console.up_after_s is None:
        late = time.monotonic() >= deadline()
        when = f"in {deadline() - began:.0f} s" if late else "before QEMU ended"
        raise LabFailed(f"It did not come up {when}.")
    if time.monotonic() >= deadline():
        raise OutOfTime
    raise LabFailed("Its machine ended before the command did.")


@contextmanager
def _running(argv: Sequence[str], wires: Wires) -> Iterator[None]:
    guarded = ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _NOT_ORPHANED, str(os.getpid())]
    # A session of its own: Ctrl-C is ours to answer.
    process = subprocess.Popen(
        [*guarded, *argv],
        stdin=subprocess.DEVNULL,
        stdout=wires.writers["console"],
        stderr=wires.writers["console"],
        pass_fds=wires.inherited,
        start_new_session=True,
    )
    for writer in wires.writers.values():
        os.close(writer)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _arriving(
    readers: dict[str, BinaryIO], deadline: Callable[[], float]
) -> Iterator[tuple[str, bytes]]:
    """What is read from each pipe, until all have ended or the time is up."""
    with selectors.DefaultSelector() as selector:
        for name, reader in readers.items():
            selector.register(reader, selectors.EVENT_READ, name)
        while selector.get_map() and (left := deadline() - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if data := os.read(key.fd, CHUNK):
                    yield key.data, data
                else:
                    selector.unregister(key.fileobj)


def _in_memory(stack: ExitStack, content: bytes) -> int:
    descriptor = os.memfd_create("initramfs")
    file = stack.enter_context(os.fdopen(descriptor, "wb"))
    file.write(content)
    file.flush()
    return descriptor
