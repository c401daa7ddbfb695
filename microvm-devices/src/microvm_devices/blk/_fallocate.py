"""fallocate(2) with its modes, which the `os` module does not have. Linux; elsewhere it is missing.

The C library's function, by ctypes, which releases the GIL. The one file of this package that
calls C.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from typing import Final

KEEP_SIZE: Final = 0x01
PUNCH_HOLE: Final = 0x02
ZERO_RANGE: Final = 0x10
"""linux/falloc.h."""


def _load() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        # fallocate64 takes 64-bit offsets whatever off_t is; both of our C libraries have it, or
        # have no other off_t.
        library = ctypes.CDLL(None, use_errno=True)
        function = getattr(library, "fallocate64", None) or library.fallocate
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    loaded: Callable[[int, int, int, int], int] = function
    return loaded


_fallocate = _load()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change the allocation of a range of an open file.

    Raises:
        OSError: as fallocate(2); EOPNOTSUPP also where there is no such call.
    """
    if _fallocate is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    while True:
        # SAFETY: four integers, converted to the prototype's types; no pointer passes, and the
        # kernel checks the descriptor and the range.
        if not _fallocate(fd, mode, offset, length):
            return
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
