"""Where entropy comes from when it is not the host's kernel: a character device."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from microvm.config import ConfigProblem
from microvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

log = logging.getLogger(__name__)


class CharacterDevice:
    """Reads a character device in a thread, since one may keep its reader waiting.

    When it fails, the host's own random numbers take its place, which is logged: a guest that waits
    for entropy does not boot, and what it gets then is what it would get without a source.

    Args:
        path: The device.
        fallback: Where else to take bytes from.
    """

    def __init__(self, path: Path, fallback: Callable[[int], bytes] = os.urandom) -> None:
        self._path = path
        self._fallback = fallback
        self._failed = False
        self._one_thread: trio.CapacityLimiter | None = None

    def check(self) -> None:
        """See that it is there.

        Raises:
            ConfigError: it is not, or it is something else.
        """
        try:
            is_device = stat.S_ISCHR(os.stat(self._path).st_mode)
        except OSError as error:
            problem = ConfigProblem("source", f"{self._path}: {error.strerror}.")
        else:
            if is_device:
                return
            problem = ConfigProblem(
                "source",
                f"{self._path} is no character device.",
                "A file would be at its end one day, and begin again for the next guest.",
            )
        raise ConfigError("The rng device can't be used as given:", problems=[problem])

    async def read(self, length: int) -> bytes:
        """1 to `length` bytes."""
        import trio

        if self._one_thread is None:
            self._one_thread = trio.CapacityLimiter(1)
        try:
            # Abandoned, the thread ends with its read, and has its descriptor to itself. Until then
            # no other begins: a guest can reset the device without end, and threads are few.
            data = await trio.to_thread.run_sync(
                self._read, length, abandon_on_cancel=True, limiter=self._one_thread
            )
        except OSError as error:
            self._complain(error.strerror or str(error))
        else:
            if data:
                return data
            self._complain("it is at its end")
        return self._fallback(length)

    def _read(self, length: int) -> bytes:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            return os.read(fd, length)
        finally:
            os.close(fd)

    def _complain(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            log.warning(
                "%s gives the guest no entropy (%s): the host's own random numbers do.",
                self._path,
                reason,
            )
