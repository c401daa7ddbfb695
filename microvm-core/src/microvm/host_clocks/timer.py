"""The one system call that Python 3.11 lacks: a timer that is cancelled when the time is set."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Final

_TFD_TIMER_ABSTIME: Final = 1
_TFD_TIMER_CANCEL_ON_SET: Final = 2
_FAR_OFF_S: Final = 2**33
"""The year 2242: it never expires, it is only ever cancelled."""


class _TimeSpec(ctypes.Structure):
    """struct timespec of the C library that is loaded."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    """struct itimerspec (timerfd_create(2))."""

    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


def open_jump_timer() -> int | None:
    """A descriptor that becomes readable when the wall clock jumps; None where there is no such.

    Reading it then fails with ECANCELED, and it waits for the next jump. The caller closes it.
    """
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_long) < 8:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    # SAFETY: both are called with the integers that their manual page asks for, and a structure
    # of our own that outlives the call; neither keeps a pointer.
    fd: int = libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        return None
    never = _TimerSpec(value=_TimeSpec(_FAR_OFF_S, 0))
    flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
    if libc.timerfd_settime(fd, flags, ctypes.byref(never), None) != 0:
        os.close(fd)
        return None
    return fd
