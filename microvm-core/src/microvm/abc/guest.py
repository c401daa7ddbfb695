"""Guests as their users hold them, and the provisioners that bring them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import attrs

from microvm.abc.jobs import DEFAULT_LOG_BYTES
from microvm.abc.needs import ImageFacts, ProvisionerNeeds
from microvm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    import trio
    from trio.abc import HalfCloseableStream

    from microvm.abc.channels import GuestChannels
    from microvm.abc.files import GuestFiles
    from microvm.abc.jobs import GuestJob, JobStatus
    from microvm.config import BootSource, DriveConfig, MachineConfig
    from microvm.forwards.addresses import TcpAddress, UnixAddress
    from microvm.forwards.forward import Handle
    from microvm.host_clocks import ClockJump
    from microvm.outbound import OutboundPolicy
    from microvm.timeline import BootTimeline


@attrs.frozen(kw_only=True)
class RunResult:
    """What a finished command left. A non-zero code is a result, not an error."""

    argv: tuple[str, ...]
    exit_code: int | None
    """0 to 255, or None when a signal ended the command."""
    signal: int | None
    """The guest's signal number, or None."""
    stdout: bytes
    stderr: bytes

    @property
    def success(self) -> bool:
        """Whether it exited with code 0."""
        return self.exit_code == 0

    @property
    def returncode(self) -> int:
        """The shell's view: the exit code, or 128 + the signal's number."""
        return self.exit_code if self.exit_code is not None else 128 + (self.signal or 0)


@attrs.frozen(kw_only=True)
class TtySize:
    """A terminal's size in character cells."""

    rows: int = 24
    cols: int = 80


class GuestProcess(ABC):
    """A command that runs in the guest, its streams open. Made by `Guest.spawn`."""

    stdin: trio.abc.SendStream
    """Closing it gives the command end-of-file; back-pressure reaches the sender."""
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream
    """Empty with a tty, where the command has one stream for both."""

    @abstractmethod
    async def wait(self) -> RunResult:
        """Wait for the end. `stdout` and `stderr` of the result are empty: you had the streams.

        Raises:
            GuestGone: the machine or its agent ended first; the command's end is unknown.
        """

    @abstractmethod
    async def send_signal(self, signal: int) -> None:
        """Send a signal (the guest's numbering) to the command's process group."""

    @abstractmethod
    async def resize(self, size: TtySize) -> None:
        """Tell a command with a tty its new window size."""


class Guest(ABC):
    """The guest as its user holds it: what a provisioner's agent can do."""

    @abstractmethod
    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes = b"",
        check: bool = False,
        max_output_bytes: int = 64 * 1024 * 1024,
    ) -> RunResult:
        """Run a command to its end and collect what it prints.

        Args:
            argv: Program and arguments; no shell is involved. The program is looked up on the
                guest's PATH.
            env: Variables added to the agent's own environment.
            cwd: Directory to start in; the default is ``/``.
            user: A user of the guest by name or number; the default is root.
            stdin: Bytes for standard input.
            check: Raise `CommandFailed` unless the exit code is 0.
            max_output_bytes: Bound on each of stdout and stderr; the guest is not trusted to
                stop by itself. Past it the command is killed and `GuestError` raised.

        Cancelling kills the command.

        Raises:
            CommandFailed: with `check`, on any end but exit code 0.
            GuestGone: the machine or its agent ended first.
            GuestError: the command could not be started (no such program, user or directory).
        """

    @abstractmethod
    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: TtySize | None = None,
    ) -> AbstractAsyncContextManager[GuestProcess]:
        """Start a command and give its streams; leaving the block kills what still runs."""

    @abstractmethod
    async def ping(self) -> float:
        """Round trip to the agent in milliseconds."""

    @abstractmethod
    async def status(self) -> Mapping[str, Any]:
        """What the agent says of its guest: version, kernel, uptime, memory, commands."""

    @abstractmethod
    async def shutdown(self) -> None:
        """Ask the guest to end itself. Returns when the agent has agreed; see `Machine.wait`."""

    @property
    def files(self) -> GuestFiles:
        """The guest's files. Optional: an agent that can't raises `ConfigError`."""
        raise _cannot("handle files", "Send them through a command: `cat` and its stdin.")

    async def spawn_detached(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        log_bytes: int = DEFAULT_LOG_BYTES,
    ) -> GuestJob:
        """Start a command that goes on by itself, without stdin, and keeps a log.

        It ends with the machine, not with the connection to it or with the program that started
        it. Optional: an agent that can't raises `ConfigError`.

        Args:
            argv: As `run` takes them, and so are the next three.
            env: Variables added to the agent's own environment.
            cwd: Directory to start in.
            user: A user of the guest.
            log_bytes: How much of what it prints is kept, in the guest's memory: the last of it.

        Raises:
            GuestError: it could not be started, or the guest has as many jobs as it keeps.
            GuestGone: the machine or its agent has ended.
        """
        raise _cannot("detach commands", "Have a shell in the guest run it in the background.")

    async def jobs(self) -> Sequence[JobStatus]:
        """The detached commands that run, and those that ended and were not removed; newest first.

        Optional, as `spawn_detached` is.
        """
        raise _cannot("detach commands", "Have a shell in the guest run it in the background.")

    async def job(self, job_id: int) -> GuestJob:
        """A detached command by its id, whoever has started it.

        Raises:
            GuestError: there is no such job any more.
        """
        raise _cannot("detach commands", "Have a shell in the guest run it in the background.")

    async def connect_to(self, address: TcpAddress | UnixAddress) -> HalfCloseableStream:
        """Open a stream to a TCP port or an AF_UNIX socket as a program in the guest would.

        Optional: an agent that can't raises `ConfigError`, as the default does.

        Raises:
            GuestRefused: nothing listens there.
            GuestError: the guest can't reach it.
            GuestGone: the machine or its agent has ended.
        """
        raise _cannot_forward()

    def listen_at(
        self, address: TcpAddress | UnixAddress, host_port: int
    ) -> AbstractAsyncContextManager[TcpAddress | UnixAddress]:
        """Listen in the guest while the block lasts; gives the address, its port chosen.

        Each connection that comes there is carried to vsock port `host_port` of the host's,
        where the caller listens already. Optional, as `connect_to` is.

        Raises:
            GuestError: the guest can't listen there.
            GuestGone: the machine or its agent has ended.
        """
        raise _cannot_forward()

    async def socks5_handler(
        self,
        server: TcpAddress | UnixAddress | None = None,
        login: tuple[str, str] | None = None,
    ) -> Handle:
        """What serves a SOCKS5 client by a server in the guest, once that is up.

        A client whose guest can't be reached any more is told so in SOCKS5's words. Optional, as
        `connect_to` is.

        Args:
            server: A server of the user's own in the guest, in place of the agent's.
            login: A name and a password that a client must know.

        Raises:
            ConfigError: `login` can't be said in SOCKS5.
            GuestError: the guest has no server to start, or it did not start.
            GuestGone: the machine or its agent has ended.
        """
        raise _cannot_forward()

    async def connect_through(self, host: str, port: int) -> HalfCloseableStream:
        """Open a stream to whatever the guest can reach; it resolves the name. Optional.

        Raises:
            ConfigError: `host` or `port` can be no host's.
            GuestRefused: nobody listens there.
            GuestError: the guest can't reach it, or does not know the name.
            GuestGone: the machine or its agent has ended.
        """
        raise _cannot_forward()

    def outbound_handler(self, policy: OutboundPolicy) -> Handle:
        """What serves the guest's own connections as the host's SOCKS5 proxy. Optional."""
        raise _cannot_forward()


def _cannot_forward() -> ConfigError:
    return _cannot("forward", "Use a vsock port (vsock_port=) that a program in it serves.")


def _cannot(what: str, remedy: str) -> ConfigError:
    return ConfigError(f"This guest's agent can't {what}.", remedy=remedy)


class Provisioner(ABC):
    """Brings something into the guest and a way to use it. `agent` is the first of them."""

    def needs(self, config: MachineConfig) -> ProvisionerNeeds:
        """What it needs of other provisioners, image, kernel and backend; by default nothing.

        Held against what is known before the boot; see `ImageFacts`. Quick, and from the
        configuration alone; `drives` of all provisioners are in it already.
        """
        return ProvisionerNeeds()

    def image_facts(self, path: Path) -> ImageFacts | None:
        """What is on a kernel, an initrd or a disk of a kind that this provisioner makes. Optional.

        Asked only for files that a provisioner of the machine needs something of. Quick, and on
        the trio thread: from what was written down when it was made. Never a guess: None of files
        that others made, or that may have changed since.
        """
        return None

    def boot_source(self, config: MachineConfig) -> BootSource | None:
        """The kernel and initrd this provisioner brings, when the user gave none.

        Quick and on the trio thread: it finds an image, it does not build one.

        Raises:
            ImageError: an image is needed and has not been built; the remedy says how.
        """
        return None

    def drives(self, config: MachineConfig) -> Sequence[DriveConfig]:
        """Disks this provisioner brings, behind those that the configuration has. Optional.

        Quick and on the trio thread: it finds images, it does not make them.

        Raises:
            ImageError: a disk is needed and has not been made; the remedy says how.
        """
        return ()

    def kernel_cmdline(self, config: MachineConfig) -> Sequence[str]:
        """Words this provisioner needs on the kernel's command line."""
        return ()

    @abstractmethod
    def attach(self, channels: GuestChannels) -> AbstractAsyncContextManager[GuestLink]:
        """Open what must be open before the guest runs (a listener for its hello).

        Entered before the machine starts, left after it has ended.
        """


class GuestLink(ABC):
    """A provisioner's half of a machine: entered before boot, ready after it."""

    @abstractmethod
    async def wait_ready(self, timeline: BootTimeline) -> Guest | None:
        """Wait, without bound, until the guest has reported; core sets the bound.

        Returns the `Guest` if this provisioner is the one that runs commands. Marks `timeline`
        with ``kernel`` when the guest's first sign of life comes, ``agent`` when it is usable.
        """

    async def build_on(self, guest: Guest) -> None:  # noqa: B027 - optional
        """Do what takes a guest that runs commands, such as starting a server in it.

        Called once, when every link of the machine has reported, in their order and within the
        same bound; the machine is ready after it. Not called where no provisioner brought a
        `Guest`. Optional. An error is the machine's: it did not get ready.
        """

    async def pausing(self) -> None:  # noqa: B027 - optional
        """Prepare for the guest's CPUs to be stopped; it may be the last that they have done.

        Called on every link at once when the machine is paused, and given a moment. Optional.
        An error is logged, and keeps nobody from the pause.
        """

    async def clock_changed(self, jump: ClockJump) -> None:  # noqa: B027 - optional
        """Make up for time that the guest has lost, and for what that broke.

        Called on every link at once, after the machine was resumed, after the host has slept, and
        after its time was set. It may be cancelled when it takes long. Optional. An error is
        logged.

        Args:
            jump: How long the guest stood still (`slept_s`), and by how much the host's time was
                set (`set_by_s`). The guest's wall clock is wrong by the sum. Whoever the guest was
                connected to may be gone only if it stood still, and for long: a set clock
                (`slept_s` is 0) or a pause of a moment breaks no connection.
        """
