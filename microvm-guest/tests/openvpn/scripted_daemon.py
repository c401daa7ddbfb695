"""A guest whose OpenVPN is a script, as far as `OpenVpnTunnel` uses a machine.

rig = Rig()
async with rig.tunnel() as vpn:
    await rig.daemon.connect()
    rig.daemon.say(">STATE:...")
    await rig.daemon.heard("signal SIGTERM")
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from microvm import MachineConfig, NetConfig
from microvm.errors import GuestError, GuestGone
from microvm.testing.channels import MemoryChannels
from microvm_guest.openvpn import Credentials, OpenVpnTunnel
from microvm_guest.openvpn.config import parse_config
from microvm_guest.provisioners.openvpn import OpenVpnLink

CONFIG = "client\nremote 192.0.2.1 1194\nauth-user-pass\n<ca>\nx\n</ca>\n"
UP = (
    ">STATE:1,AUTH,,,,,,",
    ">STATE:2,CONNECTED,SUCCESS,10.8.0.2,192.0.2.1,1194,,",
)
BROKEN = ">STATE:3,RECONNECTING,ping-restart,,,,,"
REFUSED = ">PASSWORD:Verification Failed: 'Auth'"
TERM = "signal SIGTERM"
RESTART = "signal SIGUSR1"


def no_files(name: str) -> bytes:
    """All that the configuration has is within it."""
    raise AssertionError(name)


PARSED = parse_config(CONFIG, no_files)


class ScriptedLink(OpenVpnLink):
    """The way, as this machine's guest has it."""

    def __init__(self, channels: MemoryChannels) -> None:
        super().__init__(channels)
        self.is_open = False
        self.opened = 0
        self.fails: list[GuestError] = []
        """What the next attempts to open or shut it end with."""
        self.hangs = False
        self.shutting_s = 0.0

    async def open_way(self, dns: Sequence[str], *, ipv6: bool) -> None:
        await self._try()
        self.is_open = True
        self.opened += 1

    async def shut_way(self) -> None:
        await self._try()
        await trio.sleep(self.shutting_s)
        self.is_open = False

    async def _try(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.fails:
            raise self.fails.pop(0)


class Daemon:
    """OpenVPN in the guest: a `GuestProcess` that dials, says what it is told to, and is told."""

    def __init__(self, channels: MemoryChannels) -> None:
        self._channels = channels
        self.management = 0
        """The host's port behind its management socket, as the agent was told."""
        self._stream: Any = None
        self._heard = ""
        self._ended = trio.Event()
        self._failure: GuestGone | None = None
        self.killed = False
        self.obeys = True
        """Whether SIGTERM ends it."""
        self.stdin = self
        self.stdout = self.stderr = self

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int) -> bytes:
        await self._ended.wait()
        return b""

    async def wait(self) -> None:
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def end(self, failure: GuestGone | None = None) -> None:
        """It is gone, or its guest is."""
        self._failure = failure
        self._ended.set()

    async def connect(self) -> None:
        """It dials its management."""
        self._stream = await self._channels.guest.connect(self.management)

    async def say(self, *lines: str) -> None:
        """To the host."""
        await self._stream.send_all("".join(f"{line}\n" for line in lines).encode())

    async def heard(self, command: str) -> str:
        """Wait for a command, which is taken away with all before it; that is given back."""
        while f"{command}\n" not in self._heard:
            data = await self._stream.receive_some()
            assert data, f"the host hung up and had not said {command}"
            self._heard += data.decode()
        before, _, self._heard = self._heard.partition(f"{command}\n")
        return before

    async def serve_signals(self) -> None:
        """End at SIGTERM; what comes before is not looked at."""
        await self.heard(TERM)
        if self.obeys:
            await self.say(">STATE:9,EXITING,SIGTERM,,,,,")
            self.end()


class Rig:
    """A machine for one tunnel, and its guest."""

    def __init__(self) -> None:
        self.config = MachineConfig(nets=(NetConfig(backend="null"),))  # the way out is its own
        self.state = "running"
        self.channels = MemoryChannels()
        self.daemon = Daemon(self.channels)
        self.scripted = ScriptedLink(self.channels)
        self.spawn_hangs = False

    async def wait_ready(self) -> "Rig":
        await trio.lowlevel.checkpoint()
        return self

    def link(self, kind: type[OpenVpnLink]) -> OpenVpnLink:
        assert isinstance(self.scripted, kind)
        return self.scripted

    @asynccontextmanager
    async def listen_at(self, address: object, host_port: int) -> AsyncIterator[object]:
        self.daemon.management = host_port
        yield address

    @asynccontextmanager
    async def spawn(self, argv: Sequence[str]) -> AsyncIterator[Daemon]:
        assert list(argv) == ["openvpn", "--config", "stdin"]
        if self.spawn_hangs:
            await trio.sleep_forever()
        try:
            yield self.daemon
        finally:
            self.daemon.killed = not self.daemon._ended.is_set()

    def tunnel(self, *, started: bool = True) -> OpenVpnTunnel:
        machine: Any = self
        return OpenVpnTunnel(machine, PARSED if started else None, Credentials("me", "secret"))

    async def connect(self, vpn: OpenVpnTunnel) -> None:
        """The daemon connects, and the way is opened."""
        await self.daemon.connect()
        await self.daemon.say(*UP)
        await vpn.wait_connected()
