"""Locks on files that machines use: one writer, or any number of readers.

Linux: locks of the open file description (fcntl(2), "Open file description locks"). They are held
by the descriptor, not by the process, so two machines of one process exclude each other too, and
end with it, also by `kill -9`. QEMU's locks on its images are of this kind: the two see each other.
macOS: flock(2), which has the same two properties.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_FLOCK: Final = struct.Struct("@hhqqi0q")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid, on 64-bit Linux. l_len 0 is all of it."""
_TAKEN: Final = frozenset({errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK})


def lock_file(fd: int, path: Path, *, exclusive: bool) -> bool:
    """Lock an open file until its descriptor is closed. Never waits.

    A file system that knows no locks is told of in the log, and used without.

    Returns:
        False: somebody else has it.
    """
    set_lock = getattr(fcntl, "F_OFD_SETLK", None)
    try:
        if set_lock is None:
            fcntl.flock(fd, fcntl.LOCK_NB | (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH))
        else:
            kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
            fcntl.fcntl(fd, set_lock, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        log.warning(
            "%s can't be locked (%s): see to it yourself that nothing else writes to it",
            path,
            error.strerror,
        )
    return True
