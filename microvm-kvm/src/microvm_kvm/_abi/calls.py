"""The one way into the kernel: ioctl(2), by cffi.

Python's `fcntl.ioctl` won't do: it takes its argument as a signed int, which KVM_SET_TSS_ADDR's
does not fit, and it copies structures through a buffer of 1 KiB.

cffi releases the GIL during a call and keeps errno as it was right after it.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from typing import Any, Protocol

from microvm.errors import HypervisorCallError
from microvm_kvm._abi import ioctls
from microvm_kvm._abi._generated import ffi

_libc = ffi.dlopen(None)
_ioctl = _libc.ioctl
_NULL = ffi.NULL
_KVM_RUN = ioctls.KVM_RUN


class Calls(Protocol):
    """What this backend asks of the kernel. `KernelCalls` is the real one; tests have others."""

    def open(self, path: str) -> int:
        """Open a device for reading and writing; its descriptor is not inherited by programs.

        Raises:
            OSError: it can't be opened.
        """

    def ioctl(self, fd: int, request: int, argument: Any = ...) -> int:
        """Make a request, and again while a signal interrupts it.

        Args:
            fd: /dev/kvm, a VM or a vCPU.
            request: One of `ioctls`.
            argument: A number, or a pointer to the structure that the request takes.

        Returns:
            What the kernel returned: 0 or a number that the request defines.

        Raises:
            HypervisorCallError: it failed.
        """

    def runner(self, fd: int) -> Callable[[], int]:
        """A function that does KVM_RUN on a vCPU, once: 0, or -1 and `error_number` says why.

        A function of its own, since it is called for each exit: nothing is looked up any more.
        """

    def error_number(self) -> int:
        """The errno of this thread's last failed KVM_RUN."""


class KernelCalls:
    """The kernel itself."""

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: Any = 0) -> int:
        if isinstance(argument, int):
            argument = ffi.cast("void *", argument)
        while True:
            # SAFETY: the kernel reads and writes as many bytes behind `argument` as the request's
            # number says. Callers pass `ffi.new` of the very structure that the number was made
            # of; the four whose structure has a tail (`pointer_to` makes them) give its length in
            # its first field.
            result: int = _ioctl(fd, request, argument)
            if result >= 0:
                return result
            number: int = ffi.errno
            if number != errno.EINTR:
                raise HypervisorCallError(ioctls.NAMES.get(request, hex(request)), number)

    def runner(self, fd: int) -> Callable[[], int]:
        # SAFETY: KVM_RUN takes no argument. The guest writes to the memory that was mapped by
        # KVM_SET_USER_MEMORY_REGION, which its Vm keeps, and the kernel to the vCPU's kvm_run.
        return functools.partial(_ioctl, fd, _KVM_RUN, _NULL)

    def error_number(self) -> int:
        number: int = ffi.errno
        return number


def pointer_to(structure: bytearray) -> Any:
    """A pointer to a structure with a tail; it keeps the bytes alive and from being resized."""
    return ffi.from_buffer(structure, require_writable=True)
