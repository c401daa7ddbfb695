"""`TapBackend`: frames to and from a TAP interface, with no copy in Python.

Each frame is one readv(2) or writev(2) between the interface and the guest's memory, its virtio
header in front. The kernel checks every header it is given, cuts segments, and completes checksums;
it steers flows to queues as they were last seen to send (IFF_MULTI_QUEUE).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any, Final

import attrs
import trio

from microvm.abc import Frame, NetBackend, NetLink, NetLinks, Offload
from microvm.errors import BackendError, ConfigError, MicrovmError, NetLinkDown
from microvm_devices.net.options import check_names, wrong
from microvm_devices.net.packet import HEADER_BYTES
from microvm_devices.net.tap import _abi

OFFLOADS: Final = Offload.CSUM | Offload.TSO4 | Offload.TSO6
_FLAGS: Final = (
    (Offload.CSUM, _abi.TUN_F_CSUM),
    (Offload.TSO4, _abi.TUN_F_TSO4),
    (Offload.TSO6, _abi.TUN_F_TSO6),
)


@attrs.frozen(kw_only=True)
class TapOptions:
    """An interface's name, or descriptors that were opened by somebody else."""

    name: str | None = None
    fds: tuple[int, ...] = ()
    """One a queue; each a TAP with IFF_VNET_HDR and IFF_NO_PI. They stay the caller's: duplicates
    are used."""


def read_options(options: Mapping[str, Any]) -> TapOptions:
    """Check what `NetConfig.options` has for us.

    Raises:
        ConfigError: it can't be used.
    """
    if sys.platform != "linux":
        raise ConfigError(
            "TAP interfaces are of Linux; this is no Linux.",
            remedy="Use the net backend socket, with a program such as gvproxy or socket_vmnet.",
        )
    check_names("tap", options, ("name", "fds"))
    name, fds = options.get("name"), options.get("fds") or ()
    if not isinstance(fds, (list, tuple)):
        raise wrong("tap", "fds", f"must be a list of descriptors, not {fds!r}.")
    if (name is None) == (not fds):
        raise wrong("tap", "name", "must be given, or fds, and not both.")
    if name is not None:
        good = (
            isinstance(name, str)
            and 0 < len(name.encode()) <= _abi.MAX_NAME_BYTES
            and name not in (".", "..")
            # dev_valid_name(); and the kernel would put a number in place of a %d.
            and not any(c.isspace() or c in "/:%\0" for c in name)
        )
        if not good:
            raise wrong("tap", "name", f"must be an interface's name, not {name!r}.")
    if not all(isinstance(fd, int) and not isinstance(fd, bool) and fd >= 0 for fd in fds):
        raise wrong("tap", "fds", f"must be descriptors, not {fds!r}.")
    return TapOptions(name=name, fds=tuple(fds))


class TapLink(NetLink):
    """One queue of an interface.

    Args:
        fd: Non-blocking, with headers of 12 bytes. Closed by whoever opened it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def accept(self, offloads: Offload) -> None:
        """As `NetLink.accept`. Of an interface that is gone, `receive` tells."""
        with suppress(OSError):
            _abi.set_offloads(
                self._fd, sum(flag for offload, flag in _FLAGS if offload in offloads)
            )

    def send(self, frames: Sequence[Frame]) -> int:
        """As `NetLink.send`."""
        fd, writev = self._fd, os.writev
        taken = 0
        for frame in frames:
            try:
                writev(fd, frame)
            except BlockingIOError:
                return taken
            except OSError as error:
                # EIO: the interface is down. EINVAL: the kernel makes nothing of the frame, which
                # it sees more of than we do. Both are this frame's end, and no other's.
                if error.errno in _GONE:
                    raise _gone(error) from error
            taken += 1
        return taken

    def receive(self, buffers: Sequence[memoryview]) -> int | None:
        """As `NetLink.receive`."""
        try:
            return os.readv(self._fd, buffers)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _GONE:
                raise _gone(error) from error
            return None

    async def wait_readable(self) -> None:
        """As `NetLink.wait_readable`."""
        await trio.lowlevel.wait_readable(self._fd)

    async def wait_writable(self) -> None:
        """As `NetLink.wait_writable`."""
        await trio.lowlevel.wait_writable(self._fd)


_GONE: Final = (errno.EBADFD, errno.EBADF, errno.ENODEV, errno.ENXIO)
"""EBADFD: the interface was deleted."""


def _gone(error: OSError) -> NetLinkDown:
    return NetLinkDown(f"Its TAP interface is gone: {error.strerror}.")


class TapBackend(NetBackend):
    """One interface of the host."""

    def __init__(self, options: TapOptions) -> None:
        self._options = options

    @property
    def vnet_header(self) -> bool:
        """True."""
        return True

    @property
    def offloads(self) -> Offload:
        """All there are."""
        return OFFLOADS

    @asynccontextmanager
    async def lifespan(self, queues: int) -> NetLinks:
        """As `NetBackend.lifespan`. An interface that was not there goes away with it."""
        with ExitStack() as opened:
            if self._options.name is not None:
                fds = [_open(self._options.name, queues, opened) for _ in range(queues)]
            else:
                fds = [_duplicate(fd, opened) for fd in self._options.fds[:queues]]
            for fd in fds:
                try:
                    _abi.set_header_size(fd, HEADER_BYTES)
                    _abi.set_offloads(fd, 0)
                except OSError as error:
                    raise BackendError(f"The TAP interface fails: {error.strerror}.") from error
            yield [TapLink(fd) for fd in fds]


def _duplicate(given: int, opened: ExitStack) -> int:
    try:
        fd = os.dup(given)
        opened.callback(os.close, fd)
        flags = _abi.interface_flags(fd)
    except OSError as error:
        raise ConfigError(f"Descriptor {given} is no TAP interface: {error.strerror}.") from error
    wanted = _abi.IFF_TAP | _abi.IFF_VNET_HDR | _abi.IFF_NO_PI
    if flags & wanted != wanted:
        raise ConfigError(
            f"The TAP interface behind descriptor {given} has flags {flags:#x}.",
            remedy="Open it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.",
        )
    os.set_blocking(fd, False)
    return fd


def _open(name: str, queues: int, opened: ExitStack) -> int:
    try:
        fd = os.open(_abi.CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BackendError(
            f"{_abi.CLONE_DEVICE} can't be opened: {error.strerror}.",
            remedy="TAP interfaces need the kernel's tun module, and this device to be accessible.",
        ) from error
    opened.callback(os.close, fd)
    flags = _abi.IFF_TAP | _abi.IFF_NO_PI | _abi.IFF_VNET_HDR
    # An interface that is there already has several queues or has not, and must be asked for so.
    kinds = [flags, flags | _abi.IFF_MULTI_QUEUE] if queues == 1 else [flags | _abi.IFF_MULTI_QUEUE]
    for kind in kinds:
        try:
            _abi.set_interface(fd, name, kind)
        except OSError as error:
            if error.errno == errno.EINVAL and kind != kinds[-1]:
                continue
            raise _refused(name, queues, error) from error
        break
    return fd


def _refused(name: str, queues: int, error: OSError) -> MicrovmError:
    several = " multi_queue" if queues > 1 else ""
    if error.errno == errno.EPERM:
        return ConfigError(
            f"The TAP interface {name} is not there, or not yours.",
            remedy=f"As root: ip tuntap add dev {name} mode tap{several} user $USER vnet_hdr; "
            f"ip link set {name} up",
        )
    if error.errno == errno.EBUSY:
        return ConfigError(
            f"The TAP interface {name} is in use.", remedy="End that program, or name another."
        )
    if error.errno == errno.EINVAL:
        return ConfigError(
            f"{name} is no TAP interface with {queues} queue{'s' if queues > 1 else ''}.",
            remedy=f"Name another, or make it: ip tuntap add dev {name} mode tap{several}",
        )
    return BackendError(f"The TAP interface {name} can't be opened: {error.strerror}.")
