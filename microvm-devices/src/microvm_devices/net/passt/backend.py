"""`PasstBackend`: a passt of the machine's own.

passt (https://passt.top) is TCP, UDP and ICMP for a guest by means of a user's ordinary sockets: it
needs no privileges, no TAP and no bridge. It answers DHCP, DHCPv6, NDP and ARP, and names to the
guest the host's name servers (`name_servers` has which).

It is started with one end of a socket pair and ends when ours is closed, so that it goes when we
do, also by ``kill -9``. (PR_SET_PDEATHSIG would not do: it goes by the thread that started the
process.) Started by root, it becomes nobody; it is given no file, so there is none to lose.
"""

from __future__ import annotations

import logging
import socket
import subprocess
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from microvm._groups import only_error
from microvm.abc import NetBackend, NetLinks
from microvm.errors import BackendError, NetLinkDown
from microvm_devices.net.passt import name_servers
from microvm_devices.net.passt.options import PasstOptions, command
from microvm_devices.net.stream import StreamLink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm.abc import Frame

log = logging.getLogger(__name__)

END_WITHIN_S: Final = 2.0
"""For a passt whose socket was closed; it takes 3 ms."""
MAX_STDERR_BYTES: Final = 4096
SEND_BUFFER_BYTES: Final = 4 << 20
"""Asked for at passt's end; net.core.wmem_max may allow less. What has no room there is lost, and
the passt of Debian 12 sends it again after 2 s."""


class PasstLink(StreamLink):
    """The stream to passt. That it has ended is told when it is known why."""

    def __init__(self, sock: socket.socket, passt: Passt) -> None:
        super().__init__(sock)
        self._passt = passt
        self._ended = False
        self._broken = False
        """As sending has found; what it has sent may still be there."""
        self.heard = False
        """Whether anything ever came: passt was up."""

    def send(self, frames: Sequence[Frame]) -> int:
        """As `NetLink.send`."""
        if self._broken:
            return 0
        try:
            return super().send(frames)
        except NetLinkDown:
            self._broken = True
            return 0

    async def wait_writable(self) -> None:
        """As `NetLink.wait_writable`."""
        if not self._broken:
            with suppress(NetLinkDown):
                await super().wait_writable()
                return
            self._broken = True
        raise await self._down()

    def receive(self, buffers: Sequence[memoryview]) -> int | None:
        """As `NetLink.receive`."""
        if self._ended:
            return None
        try:
            length = super().receive(buffers)
        except NetLinkDown:
            self._ended = True
            return None
        if length is not None:
            self.heard = True
        return length

    async def wait_readable(self) -> None:
        """As `NetLink.wait_readable`."""
        if not self._ended:
            await super().wait_readable()
            return
        raise await self._down()

    async def _down(self) -> NetLinkDown:
        with trio.move_on_after(END_WITHIN_S):
            return NetLinkDown(await self._passt.ended())
        return NetLinkDown("passt hung up, and has not ended.")


class Passt:
    """The process."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._stderr = bytearray()
        self._drained = trio.Event()

    async def drain(self) -> None:
        """Read what it says, and keep the last of it, until it ends."""
        stderr = self._process.stderr
        assert stderr is not None
        async for data in stderr:
            self._stderr += data
            del self._stderr[:-MAX_STDERR_BYTES]
        self._drained.set()

    async def ended(self) -> str:
        """Wait for its end, and say how it came."""
        await self._drained.wait()
        code = await self._process.wait()
        lines = self._stderr.decode(errors="replace").splitlines()
        # It says so too of every line when there is no system log, as in a container.
        said = [line.strip() for line in lines if not line.startswith("Failed to send")]
        return f"passt ended with code {code}. It said: {' / '.join(said[-5:]) or 'nothing'}"

    async def finish(self) -> None:
        """Its socket is closed: wait for it to go, and see to it."""
        with trio.CancelScope(shield=True):
            with trio.move_on_after(END_WITHIN_S):
                await self._process.wait()
            if self._process.poll() is None:
                log.warning("passt (process %d) had to be killed.", self._process.pid)
                self._process.kill()
                await self._process.wait()
            if self._process.stderr is not None:
                await self._process.stderr.aclose()


class PasstBackend(NetBackend):
    """One passt for one machine.

    Args:
        options: What it is asked for.
        program: Its path.
    """

    def __init__(self, options: PasstOptions, program: str) -> None:
        self._options = options
        self._program = program

    @property
    def mtu(self) -> int | None:
        """As the options say, unless told far beyond 1500."""
        return self._options.mtu

    @asynccontextmanager
    async def lifespan(self, queues: int) -> NetLinks:
        """As `NetBackend.lifespan`. A passt that ends before it was of any use ends it too."""
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        with ours:
            with theirs:
                passt = await self._start(theirs)
            link = PasstLink(ours, passt)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(passt.drain)
                    nursery.start_soon(_watch, passt, link)
                    yield [link]
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                error = only_error(group)
                if error is group:
                    raise
                raise error from None
            finally:
                ours.close()
                await passt.finish()

    async def _start(self, theirs: socket.socket) -> Passt:
        # As they are now: a computer that moves has others with each network.
        host = name_servers.host_name_servers(_text)
        if missing := name_servers.what_is_missing(self._options, host):
            log.warning("%s", missing)
        words = command(self._program, self._options, host, fd=theirs.fileno())
        try:
            process = await trio.lowlevel.open_process(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
            )
        except OSError as error:
            raise BackendError(f"{self._program} can't be started: {error.strerror}.") from error
        return Passt(process)


def _text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace")


async def _watch(passt: Passt, link: PasstLink) -> None:
    """End the machine for a passt that never came up: its guest would have no network."""
    how = await passt.ended()
    if not link.heard:
        raise BackendError(
            f"The guest's network can't be made: {how}",
            remedy="See whether the host has a network, and whether the forwarded ports are free.",
        )
