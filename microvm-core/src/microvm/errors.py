"""The error family. Whose fault it is stands in the type; what to do about it in the message.

`MicrovmError` is the root. Below it, one branch for each party that can be at fault: the user
(`ConfigError`), a plugin (`PluginError`), the host and its hypervisor (`BackendError`), the
kernel and its images (`BootError`), and whatever runs in the guest (`GuestError`). Every class
has a `code` that stays the same from release to release, for programs to match on.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm.config import ConfigProblem


class MicrovmError(Exception):
    """Root of every error this framework raises on purpose.

    Args:
        message: What went wrong, as a sentence.
        remedy: What the reader can do about it, as a sentence or a command.
        console: The guest's last console lines, where a guest had run.
    """

    code: ClassVar[str] = "microvm"

    def __init__(
        self, message: str, *, remedy: str | None = None, console: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.console = tuple(console)

    def __str__(self) -> str:
        parts = [self.message]
        if self.remedy is not None:
            parts.append(self.remedy)
        if self.console:
            parts.append("Last console lines:")
            parts.extend(f"  {line}" for line in self.console)
        return "\n".join(parts)


class ConfigError(MicrovmError, ValueError):
    """The machine as described can't be built. All problems found are listed at once."""

    code = "config"

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        problems: Sequence[ConfigProblem] = (),
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [super().__str__(), *(f"  {problem}" for problem in self.problems)]
        return "\n".join(lines)


class PluginError(MicrovmError):
    """A plugin, or the lack of one, is at fault."""

    code = "plugin"


class PluginMissing(PluginError, LookupError):
    """No installed distribution provides the component asked for by name."""

    code = "plugin.missing"


class PluginLoadError(PluginError):
    """A plugin was found but could not be imported, registered or called."""

    code = "plugin.load"


class PluginConflict(PluginError):
    """Two distributions provide a component of the same name, and that name was used."""

    code = "plugin.conflict"


class BackendError(MicrovmError):
    """The hypervisor or platform, or the host below it, is at fault."""

    code = "backend"


class BackendUnavailable(BackendError):
    """The backend asked for, or every backend there is, can't run on this host now."""

    code = "backend.unavailable"


class HypervisorCallError(BackendError):
    """A call into the hypervisor failed.

    Args:
        call: The call by its header's name, such as ``KVM_CREATE_VM``.
        errno: Why, as the system's error number.
        remedy: What the reader can do about it.
    """

    code = "backend.hypervisor_call"

    def __init__(self, call: str, errno: int, *, remedy: str | None = None) -> None:
        super().__init__(f"{call} failed: {os.strerror(errno)} (errno {errno}).", remedy=remedy)
        self.call = call
        self.errno = errno


class BackendCrashed(BackendError):
    """The backend's process or its connection ended when nobody had asked for it."""

    code = "backend.crashed"


class NetLinkDown(BackendError):
    """What carries a network device's frames is gone, and won't come back."""

    code = "backend.net_link_down"


class WorkerProtocolError(BackendCrashed):
    """A machine's worker process sent what is not in the protocol, and was ended for it."""

    code = "backend.crashed.protocol"


class BootError(MicrovmError):
    """The machine could not be brought to the point where its guest answers."""

    code = "boot"


class ImageError(BootError):
    """A kernel, initrd or disk is missing, unreadable, or not what it claims to be."""

    code = "boot.image"


class GuestNotReady(BootError, TimeoutError):
    """The guest runs, but its agent did not report within the configured bound."""

    code = "boot.not_ready"


class GuestError(MicrovmError):
    """The guest is at fault. A device never lets one of these out: it answers with a reset."""

    code = "guest"


class GuestMemoryError(GuestError):
    """The guest named memory it does not have."""

    code = "guest.memory"


class QueueError(GuestError):
    """The guest's driver broke the rules of a virtqueue."""

    code = "guest.queue"


class GuestProtocolError(GuestError):
    """The guest's agent sent something that is not in the protocol."""

    code = "guest.protocol"


class GuestGone(GuestError):
    """The machine or its agent ended while something was still asked of it."""

    code = "guest.gone"


class GuestRefused(GuestError, ConnectionRefusedError):
    """Nothing in the guest listens on the port asked for."""

    code = "guest.refused"


class GuestFileError(GuestError, OSError):
    """The guest's system refused something with one of its files; `errno` is the guest's."""

    code = "guest.file"


class GuestFileNotFound(GuestFileError, FileNotFoundError):
    """There is no such file or directory in the guest."""

    code = "guest.file.not_found"


class CommandFailed(GuestError):
    """A command run with `check=True` ended with a non-zero code or by a signal."""

    code = "guest.command"
