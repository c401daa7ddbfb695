"""A machine with a guest of Python's, whose OpenVPN is a script that speaks to its management."""

from contextlib import asynccontextmanager
from pathlib import Path

import trio
import trio.testing

from microvm import BootSource, MachineConfig
from microvm.abc import Guest, GuestProcess, ProvisionerNeeds, RunResult
from microvm.plugins import ProvisionerFactory
from microvm.sync import Machine
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.platform import ScriptedBackend, ScriptedProvisioner
from microvm.testing.plugins import plugin_manager
from microvm_guest.provisioners.openvpn import OpenVpnProvisioner

CONFIG = "client\nremote 192.0.2.1\nauth-user-pass\n<ca>\n</ca>\n"


class Daemon(GuestProcess):
    """An OpenVPN that connects for who knows the password, and asks a question if it has one."""

    def __init__(self, channels, management: int, question: str | None, password: str) -> None:
        self.stdin, self._config = trio.testing.memory_stream_one_way_pair()
        self._out, self.stdout = trio.testing.memory_stream_one_way_pair()
        self._err, self.stderr = trio.testing.memory_stream_one_way_pair()
        self._channels = channels
        self._management = management
        self._question = question
        self._password = password
        self.config = b""
        self.said = []
        """The commands that it was given."""
        self._ended = trio.Event()

    async def serve(self) -> None:
        async for data in self._config:
            self.config += data
        stream = await self._channels.guest.connect(self._management)
        try:
            await stream.send_all(b">HOLD:Waiting for hold release:0\r\n")
            rest = b""
            while data := await stream.receive_some():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self.said.append(line.decode().rstrip("\r"))
                    for answer in self._answers(self.said[-1]):
                        await stream.send_all(f"{answer}\r\n".encode())
                if self.said[-1:] == ["signal SIGTERM"]:
                    return
        finally:
            self._out.close()
            self._err.close()
            self._ended.set()
            with trio.CancelScope(shield=True):
                await stream.aclose()

    def _answers(self, command: str):
        if command == "hold release":
            question = "" if self._question is None else f" SC:1,{self._question}"
            yield ">STATE:1,CONNECTING,,,,,,"
            yield f">PASSWORD:Need 'Auth' username/password{question}"
        elif command.startswith('password "Auth"'):
            if self._password in command:
                yield ">STATE:2,CONNECTED,SUCCESS,10.8.0.2,192.0.2.1,1194,,"
            else:
                yield ">PASSWORD:Verification Failed: 'Auth'"
        elif command == "signal SIGTERM":
            yield ">STATE:3,EXITING,SIGTERM,,,,,"

    async def wait(self) -> RunResult:
        await self._ended.wait()
        return RunResult(argv=("openvpn",), exit_code=0, signal=None, stdout=b"", stderr=b"")

    async def send_signal(self, signal: int) -> None: ...

    async def resize(self, size) -> None: ...


class Files:
    async def write_text(self, path: str, text: str) -> None: ...


class VpnGuest(Guest):
    """As much of a guest as a tunnel uses."""

    files = Files()

    def __init__(self, channels, rig: "VpnRig") -> None:
        self._channels = channels
        self._rig = rig
        self._management = 0

    async def run(self, argv, **options) -> RunResult:
        return RunResult(argv=tuple(argv), exit_code=0, signal=None, stdout=b"", stderr=b"")

    @asynccontextmanager
    async def spawn(self, argv, **options):
        rig = self._rig
        daemon = Daemon(self._channels, self._management, rig.question, rig.password)
        rig.daemons.append(daemon)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.serve)
            yield daemon
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def listen_at(self, address, host_port):
        self._management = host_port
        yield address

    async def socks5_handler(self, server=None, login=None):
        return None

    async def ping(self) -> float:
        return 0.5

    async def status(self):
        return {}

    async def shutdown(self) -> None: ...


class WithoutImages(OpenVpnProvisioner):
    """Nothing is built, and nothing booted."""

    def drives(self, config):
        return ()

    def needs(self, config):
        return ProvisionerNeeds()


class VpnRig:
    """Machines that are ready at once."""

    def __init__(self, folder: Path, question: str | None = None, password: str = "secret") -> None:
        self.question = question
        self.password = password
        self.daemons: list[Daemon] = []
        self.backend = ScriptedBackend()
        self.agent = ScriptedProvisioner()
        self.kernel = tiny_kernel(folder / "kernel")
        self.backend.platform.script = self._guest
        self.config = folder / "office.ovpn"
        self.config.write_text(CONFIG)

    async def _guest(self, machine) -> None:
        self.agent.link.become(VpnGuest(machine.memory_channels, self))

    def machine(self) -> Machine:
        vpn = ProvisionerFactory(name="openvpn", summary="for tests", create=WithoutImages)
        manager = plugin_manager(self.backend.factory(), self.agent.factory(), vpn)
        boot = BootSource(kernel=self.kernel)
        config = MachineConfig(boot=boot, provisioners=("agent", "openvpn"))
        return Machine(config, plugins=manager)
