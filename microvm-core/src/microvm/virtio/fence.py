"""The one memory fence that a split virtqueue needs beyond what x86-64 gives.

Device and driver each store their own index and then load the other's wish for a notification
(virtio 1.2, 2.7.7.2, 2.7.10.2, 2.7.13.4: "suitable memory barrier"). Both may load before either
store is seen; then both go to sleep. Between that store and that load stands `fence`.

On x86-64 it is the only one needed. Its memory model (TSO) keeps loads in order with loads and
stores in order with stores, so a used element is seen before the index that covers it, and a
descriptor is loaded after the index that announced it; only a load may pass an earlier store.
CPython compiles nothing together across two bytecodes, so the compiler has no say.

A fence out of plain Python: taking an uncontended `threading.Lock` is an atomic
compare-and-exchange in every CPython (`sem_trywait` on a POSIX semaphore, `PyMutex` in later
ones), that is, an instruction with a LOCK prefix, which drains the store buffer (Intel SDM volume
3A, 9.2.3.9). A lock that is made for the purpose and dropped is never contended, in no thread,
and also where a fence interrupts a fence (signal handlers, finalizers, trace functions), which
with a lock that lives would wait for itself. Measured: 0.11 us, once a batch.

Elsewhere this is *not* proven: on 64-bit Arm the same lock is an acquire and a release, which
together let a store sink and a load rise until they have passed each other, and the orders named
above would need barriers of their own. There a C helper must take this function's place; it
comes with the backend that runs on such hosts (`microvm-kvm`).
"""

from __future__ import annotations

import platform
import threading
from typing import Final

TOTAL_STORE_ORDER: Final = platform.machine().lower() in {"x86_64", "amd64"}
"""Whether this machine's memory model is the one that the argument above is about."""

_new_lock = threading.Lock


def fence() -> None:
    """Order every store before the call ahead of every load after it."""
    _new_lock().acquire()
