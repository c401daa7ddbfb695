"""The one memory fence that a split virtqueue needs beyond what x86-64 gives.

Device and driver each store their own index and then load the other's wish for a notification
(virtio 1.2, 2.7.7.2, 2.7.10.2, 2.7.13.4: "suitable memory barrier"). Both may load before either
store is seen; then both go to sleep. Between that store and that load stands `fence`.

On x86-64 it is the only one needed. Its memory model (TSO) keeps loads in order with loads and
stores in order with stores, so a used element is seen before the index that covers it, and a
descriptor is loaded after the index that announced it; only a load may pass an earlier store.
CPython compiles nothing together across two bytecodes, so the compiler has no say.

A fence out of plain Python: taking an uncontended `threading.Lock` is an atomic
compare-and-exchange, that is, an instruction with a LOCK prefix, which drains the store buffer
(Intel SDM volume 3A, 9.2.3.9). Which one it is:

* CPython 3.11, 3.12 and 3.13.0 on Linux call `sem_trywait` first (seen in 3.11.7, 3.12.1 and
  3.13.0, disassembled), and that is ``lock cmpxchg``, whether or not there are other threads
  (glibc 2.36, disassembled; musl's source says the same);
* from 3.13.1 on a lock is a `PyMutex` (python/cpython#152798), whose fast path is a sequentially
  consistent compare-and-exchange: the same instruction;
* not so a lock made of a `pthread_mutex_t`, CPython's way where it finds no POSIX semaphores
  (``sys.thread_info.lock == "mutex+cond"``): glibc's omits the locked instruction while a process
  has one thread. No build for Linux is like that; `test_fence.py` would tell.

A lock that is made for the purpose and dropped is never contended, in no thread, and also where a
fence interrupts a fence (signal handlers, finalizers, trace functions), which with a lock that
lives would wait for itself. Measured: 0.11 us, once a batch. And what it is for can be seen:
of 65 534 rounds in which two CPUs each store a word and then load the other's, both miss the
other's store in 1 to 140 if only bytecode stands between, and in none with the fence
(`test_fence.py`; 3.11.7, 3.12.1, 3.13.0).

On 64-bit Arm this is *not* enough, and not only here. The lock is an acquire (and, as it is
dropped, at best a release), which together let a store sink and a load rise until they have
passed each other; it would have to be a full barrier (``dmb ish``). And two more orders, free under
TSO, want a barrier of their own (names as in `microvm.virtio.queue`):

* in `_look`, between the load of the driver's index and the loads of ring and descriptors
  (``dmb ishld``);
* in `add_used`, between the element, with the buffers' bytes, and the index (``dmb ishst``);
* here, a full one (``dmb ish``).

Python's standard library has no function that is documented to do any of these. A candidate that
needs no compiler: *release and then acquire* a semaphore; a store-release and a later
load-acquire keep their order (Arm ARM, B2.3, barrier-ordered-before), and everything before the
one and behind the other with them. It was tried on no such machine, so it is not here: a backend
that runs on one (KVM or HVF on Arm) brings it with a run of `test_fence.py` there, or a C helper.
"""

from __future__ import annotations

import platform
import threading
from typing import Final

TOTAL_STORE_ORDER: Final = platform.machine().lower() in {"x86_64", "amd64"}
"""Whether this machine's memory model is the one that the argument above is about."""

WHY_NOT: Final = (
    "The order in which this host's CPU does memory accesses is not the one that our virtqueues "
    "are made for: notifications would be lost now and then."
)
"""To whom `TOTAL_STORE_ORDER` is false; a backend's probe says it."""

_new_lock = threading.Lock


def fence() -> None:
    """Order every store before the call ahead of every load after it."""
    _new_lock().acquire()
