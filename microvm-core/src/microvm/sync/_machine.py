"""`Machine` without async: each method hands its like of `microvm.Machine` to the loop."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from microvm.config import MachineConfig
from microvm.sync._channels import Listener, socket_from
from microvm.sync._forward import Forward
from microvm.sync._guest import Guest
from microvm.sync._guest_verbs import GuestVerbs
from microvm.sync._loop import BackgroundLoop, background_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from microvm._assembly import BackendChoice
    from microvm._machine import Machine as AsyncMachine
    from microvm.abc import ConsoleSink, CopyLimits, CopyReport, Fact
    from microvm.metrics import MachineMetrics
    from microvm.outbound import OutboundPolicy
    from microvm.outcome import MachineOutcome
    from microvm.plugins import PluginManager
    from microvm.sync._calls import Held

T = TypeVar("T")


class Machine(GuestVerbs):
    """A microVM, as a context manager; see `microvm.Machine`, whose names and arguments it has.

    Entering it starts the machine and returns while the guest boots. Leaving it, also by an error
    or Ctrl-C, ends the guest at once and leaves nothing behind. Any thread may use it meanwhile,
    several at once.

    Args:
        config: The machine, described; the default is a minimal guest with the agent.
        plugins: Where components come from; the default is what is installed.
        console: Where the console goes, in place of what the configuration says; its methods are
            called on the background thread.

    Raises (on entry): as `microvm.Machine` does.

    Example:
        with Machine(MachineConfig(mem_size_mib=256)) as machine:
            result = machine.run(["uname", "-r"], check=True)
    """

    def __init__(
        self,
        config: MachineConfig | None = None,
        *,
        plugins: PluginManager | None = None,
        console: ConsoleSink | None = None,
    ) -> None:
        self.config = config if config is not None else MachineConfig()
        self._plugins = plugins
        self._console = console
        self._loop: BackgroundLoop | None = None
        self._held: Held[AsyncMachine] | None = None
        self._machine: AsyncMachine | None = None

    # --- life ----------------------------------------------------------------------------

    def __enter__(self) -> Machine:
        if self._held is not None:
            raise RuntimeError("A Machine is entered once; make a new one to start again.")
        self._loop = background_loop()
        self._held = self._loop.hold(self._make)
        try:
            self._held.__enter__()
            return self
        except BaseException:
            self._held.abandon()
            raise

    def _make(self) -> AsyncMachine:
        # On the loop's thread, and not before: this imports trio.
        from microvm._machine import Machine as AsyncMachine

        self._machine = AsyncMachine(self.config, plugins=self._plugins, console=self._console)
        return self._machine

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._held is not None
        self._held.__exit__(kind, error, traceback)

    def _live(self) -> tuple[BackgroundLoop, AsyncMachine]:
        if self._loop is None or self._machine is None:
            raise RuntimeError("The machine is not started: use `with Machine(...)`.")
        return self._loop, self._machine

    def _nursery(self) -> trio.Nursery:
        _, machine = self._live()
        assert machine._nursery is not None
        return machine._nursery

    # --- what it is ----------------------------------------------------------------------

    def _read(self, read: Callable[[AsyncMachine], T]) -> T:
        """Read what belongs to the loop, on the loop."""
        loop, machine = self._live()

        async def work() -> T:
            return read(machine)

        return loop.call(work)

    @property
    def state(self) -> Literal["starting", "running", "paused", "ended"]:
        """What it does now, in a word."""
        return self._live()[1].state

    @property
    def backend(self) -> BackendChoice:
        """The backend chosen, and why."""
        return self._live()[1].backend

    @property
    def timing(self) -> Mapping[str, float]:
        """The boot so far: phase to milliseconds, in order."""
        return self._live()[1].timing

    @property
    def exit_counts(self) -> Mapping[str, int]:
        """VM exits by kind, where the backend counts them (`Capability.EXIT_COUNTS`)."""
        return self._read(lambda machine: machine.exit_counts)

    @property
    def metrics(self) -> MachineMetrics:
        """Everything that is counted of the machine, now."""
        return self._read(lambda machine: machine.metrics)

    @property
    def console_path(self) -> str | None:
        """Where the console is to be found: the file, or the terminal made for it."""
        return self._live()[1].console_path

    @property
    def console_tail(self) -> tuple[str, ...]:
        """The guest's last console lines, control characters made visible."""
        return self._read(lambda machine: machine.console_tail)

    @property
    def outcome(self) -> MachineOutcome | None:
        """How it ended, or None while it runs."""
        return None if self._machine is None else self._machine.outcome

    # --- what it can do ------------------------------------------------------------------

    def wait(self) -> MachineOutcome:
        """Wait until the machine has ended, by itself or by `stop`."""
        loop, machine = self._live()
        return loop.call(machine.wait)

    def wait_ready(self) -> Guest:
        """Wait until the guest's agent answers, and return the guest."""
        loop, machine = self._live()
        return Guest(loop, self._nursery(), loop.call(machine.wait_ready))

    def copy_in(self, local: str | os.PathLike[str], guest_path: str) -> CopyReport:
        """Copy a file or directory into the guest; see `microvm.abc.GuestFiles.copy_in`."""
        return self.files.copy_in(local, guest_path)

    def copy_out(
        self,
        guest_path: str,
        local: str | os.PathLike[str],
        *,
        limits: CopyLimits | None = None,
    ) -> CopyReport:
        """Copy a file or directory out of the guest; see `microvm.abc.GuestFiles.copy_out`."""
        return self.files.copy_out(guest_path, local, limits=limits)

    def connect(self, port: int) -> socket.socket:
        """Open a stream to a guest port, as a blocking socket.

        The socket knows nothing of `fail_after`: give it its own `settimeout`.
        """
        loop, machine = self._live()
        return socket_from(loop, self._nursery(), partial(machine.connect, port))

    def listen(self, port: int) -> Listener:
        """Take the guest's connections to a host port."""
        loop, _ = self._live()
        listener = self._read(lambda machine: machine.listen(port))
        return Listener(loop, self._nursery(), listener)

    def open_console(self) -> socket.socket:
        """The guest's console, as a blocking socket; see `microvm.Machine.open_console`."""
        loop, machine = self._live()
        return socket_from(loop, self._nursery(), machine.open_console)

    def open_device_stream(self, device: str, name: str) -> socket.socket:
        """A device's stream as a blocking socket; see `microvm.Machine.open_device_stream`."""
        loop, machine = self._live()
        opened = partial(machine.open_device_stream, device, name)
        return socket_from(loop, self._nursery(), opened)

    def device_command(self, device: str, what: str, /, **arguments: Any) -> Mapping[str, Fact]:
        """Have a device do what only its kind can; see `microvm.Machine.device_command`."""
        loop, machine = self._live()
        return loop.call(partial(machine.device_command, device, what, **arguments))

    def wait_console(self) -> None:
        """Wait until the console's sink has ended; see `microvm.Machine.wait_console`."""
        loop, machine = self._live()
        loop.call(machine.wait_console)

    def forward(
        self,
        *,
        guest_port: int | None = None,
        guest_host: str | None = None,
        guest_path: str | None = None,
        vsock_port: int | None = None,
        host: str | None = None,
        port: int | None = None,
        path: str | Path | None = None,
    ) -> Forward:
        """Listen on the host, and carry each connection into the guest.

        See `microvm.Machine.forward`.
        """
        loop, machine = self._live()
        work = partial(
            machine.forward,
            guest_port=guest_port,
            guest_host=guest_host,
            guest_path=guest_path,
            vsock_port=vsock_port,
            host=host,
            port=port,
            path=path,
        )
        return Forward(loop, loop.call(work))

    def expose(
        self,
        *,
        port: int | None = None,
        host: str | None = None,
        path: str | Path | None = None,
        guest_port: int | None = None,
        guest_host: str | None = None,
        guest_path: str | None = None,
        vsock_port: int | None = None,
    ) -> Forward:
        """Offer a service of the host's to the guest; see `microvm.Machine.expose`."""
        loop, machine = self._live()
        work = partial(
            machine.expose,
            port=port,
            host=host,
            path=path,
            guest_port=guest_port,
            guest_host=guest_host,
            guest_path=guest_path,
            vsock_port=vsock_port,
        )
        return Forward(loop, loop.call(work))

    def socks5(
        self,
        *,
        host: str | None = None,
        port: int | None = None,
        path: str | Path | None = None,
        guest_port: int | None = None,
        login: tuple[str, str] | None = None,
    ) -> Forward:
        """Offer on the host a SOCKS5 proxy whose other end is the guest.

        See `microvm.Machine.socks5`.
        """
        loop, machine = self._live()
        work = partial(
            machine.socks5, host=host, port=port, path=path, guest_port=guest_port, login=login
        )
        return Forward(loop, loop.call(work))

    def outbound_proxy(
        self, policy: OutboundPolicy | None = None, *, guest_port: int = 1081
    ) -> Forward:
        """Offer the guest a SOCKS5 proxy that leads out; see `microvm.Machine.outbound_proxy`."""
        loop, machine = self._live()
        return Forward(
            loop, loop.call(partial(machine.outbound_proxy, policy, guest_port=guest_port))
        )

    def pause(self) -> None:
        """Stop the guest's CPUs until `resume`; its memory stays as it is."""
        loop, machine = self._live()
        loop.call(machine.pause)

    def resume(self) -> None:
        """Let a paused guest go on."""
        loop, machine = self._live()
        loop.call(machine.resume)

    def stop(self) -> MachineOutcome:
        """End the machine: ask the guest, wait a little, then end it whatever it does."""
        loop, machine = self._live()
        return loop.call(machine.stop)
