"""A scripted machine for the tests of microvm.sync, also in processes of their own.

Its guest has a few commands; what leaves it is told by `on_left`.
"""

from contextlib import asynccontextmanager

import trio
import trio.testing

from microvm import BootSource, GuestError, MachineConfig
from microvm.abc import Guest, GuestFiles, GuestProcess, RunResult
from microvm.errors import GuestFileNotFound
from microvm.sync import Machine
from microvm.sync._loop import background_loop
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.platform import ScriptedBackend, ScriptedProvisioner
from microvm.testing.plugins import plugin_manager


class EchoProcess(GuestProcess):
    """`cat`, ended by the end of its stdin or by a signal."""

    def __init__(self):
        self.stdin, near = trio.testing.memory_stream_one_way_pair()
        far, self.stdout = trio.testing.memory_stream_one_way_pair()
        quiet, self.stderr = trio.testing.memory_stream_one_way_pair()
        quiet.close()
        self._near, self._far = near, far
        self._ended = trio.Event()
        self._signal = None
        self.sizes = []

    async def serve(self):
        async for data in self._near:
            await self._far.send_all(data)
        self._far.close()
        self._ended.set()

    async def wait(self):
        await self._ended.wait()
        return RunResult(
            argv=("cat",),
            exit_code=0 if self._signal is None else None,
            signal=self._signal,
            stdout=b"",
            stderr=b"",
        )

    async def send_signal(self, signal):
        self._signal = signal
        self._far.close()
        self._ended.set()

    async def resize(self, size):
        self.sizes.append(size)


class DictFiles(GuestFiles):
    """Files in a dict; what is written is there when its block was left well."""

    def __init__(self):
        self.contents = {}

    @asynccontextmanager
    async def open_read(self, path):
        if path not in self.contents:
            raise GuestFileNotFound(f"There is no {path!r}.")
        send, receive = trio.testing.memory_stream_one_way_pair()
        await send.send_all(self.contents[path])
        send.close()
        yield receive

    @asynccontextmanager
    async def open_write(self, path, *, mode=0o644):
        send, receive = trio.testing.memory_stream_one_way_pair()
        yield send
        send.close()
        self.contents[path] = b"".join([chunk async for chunk in receive])

    async def _never(self, *args, **options):
        raise AssertionError

    copy_in = copy_out = stat = list_dir = mkdir = remove = _never


class FakeGuest(Guest):
    """Knows `echo`, `sleep` (until woken), `cat` (when spawned) and nothing else."""

    def __init__(self, channels):
        self.channels = channels
        self.cancelled = []
        self.processes = []
        self.sleeping = trio.Event()
        self.woken = trio.Event()
        self.gone = None
        self._files = DictFiles()

    @property
    def files(self):
        return self._files

    async def run(self, argv, **options):
        if self.gone is not None:
            raise self.gone
        try:
            if argv[0] == "sleep":
                self.sleeping.set()
                print("sleeping", flush=True)
                await self.woken.wait()
            elif argv[0] != "echo":
                raise GuestError(f"The guest did not start {argv[0]!r}.")
        except trio.Cancelled:
            self.cancelled.append(argv[0])
            raise
        said = " ".join(argv[1:]).encode()
        return RunResult(argv=tuple(argv), exit_code=0, signal=None, stdout=said, stderr=b"")

    @asynccontextmanager
    async def spawn(self, argv, **options):
        process = EchoProcess()
        self.processes.append(process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.serve)
            yield process
            nursery.cancel_scope.cancel()

    async def ping(self):
        return 0.5

    async def status(self):
        return {"pid": 1}

    async def shutdown(self):
        raise GuestError("It does not.")

    async def connect_to(self, address):
        return await self.channels.connect(5000)


def on_loop(function, *args):
    """Call a function on the background loop's thread: what is the loop's may be touched there."""

    async def work():
        return function(*args)

    return background_loop().call(work)


class Rig:
    """Machines that are ready at once, and what became of them."""

    def __init__(self, folder, on_left=lambda: None):
        self.backend = ScriptedBackend()
        self.agent = ScriptedProvisioner()
        self.kernel = tiny_kernel(folder / "kernel")
        self.on_left = on_left
        self.guests = []
        self.backend.platform.script = self._guest

    async def _guest(self, machine):
        guest = FakeGuest(machine.memory_channels)
        self.guests.append(guest)
        self.agent.link.become(guest)
        try:
            await trio.sleep_forever()
        finally:
            self.on_left()

    @property
    def platform(self):
        return self.backend.platform

    @property
    def guest(self):
        return self.guests[-1]

    @property
    def channels(self):
        return self.platform.machines[-1].memory_channels

    def machine(self, **fields):
        manager = plugin_manager(self.backend.factory(), self.agent.factory())
        config = MachineConfig(boot=BootSource(kernel=self.kernel), **fields)
        return Machine(config, plugins=manager)
