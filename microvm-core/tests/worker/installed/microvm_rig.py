"""A backend and a device that are installed, as far as a worker process can tell.

The backend's machines are scripts (`microvm.testing.platform`), chosen by its option ``script``.
"""

import logging
import os
import signal
import socket
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import trio.testing

import microvm.errors
from microvm.abc import Capability, ProbeReport, VirtioDevice
from microvm.config import ConfigProblem
from microvm.errors import ConfigError, HypervisorCallError
from microvm.outcome import MachineOutcome, OutcomeReason
from microvm.plugins import BackendFactory, DeviceFactory, hookimpl
from microvm.testing.platform import ScriptedMachine, ScriptedPlatform

ECHO, DIALLED = 7, 9
log = logging.getLogger("microvm.rig")


async def relayed(source, sink):
    async for chunk in source:
        await sink.send_all(chunk)
    await sink.send_eof()


# --- guests ------------------------------------------------------------------------------------


async def idle(machine):
    machine.say("idle")
    await trio.sleep_forever()


async def echo(machine):
    """Sends back what comes to its port, and says on its console when a stream has ended."""
    listener = machine.memory_channels.guest.listen(ECHO)

    async def serve(stream):
        async with stream:
            await relayed(stream, stream)
            machine.say("echoed")

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(serve, await listener.accept())


async def echo_typed(machine):
    """Says what was typed, once it is a line."""
    while not machine.typed.endswith(b"\n"):  # noqa: ASYNC110 - it is memory that changes
        await trio.sleep(0.001)
    machine.say(f"typed {machine.typed.decode().strip()}")
    await trio.sleep_forever()


async def dial(machine):
    """Calls the host at once, and sends it back what it says."""
    stream = await machine.memory_channels.guest.connect(DIALLED)
    await relayed(stream, stream)
    machine.say("answered")
    await trio.sleep_forever()


async def dial_often(machine):
    """Calls the host until it is refused; what it says is the number of its calls."""
    for number in range(1000):
        try:
            stream = await machine.memory_channels.guest.connect(DIALLED)
        except microvm.errors.GuestRefused:
            machine.say("refused")
            await trio.sleep(0.01)
        else:
            async with stream:
                await stream.send_all(b"%d" % number)
                await stream.send_eof()
                await trio.sleep(0.01)


async def panic(machine):
    machine.say("Kernel panic - not syncing: \x1b[31mno init")
    return MachineOutcome(
        reason=OutcomeReason.PANIC, detail="It panicked.", cpu_state=("vCPU 0:", "rip=0xfff0")
    )


async def blocked(machine):
    """Holds the worker's trio thread, as a device could that a guest has got to."""
    time.sleep(1000)  # noqa: ASYNC251 - that is the point


async def spinning(machine):
    while True:
        pass


async def killed(machine):
    os.kill(os.getpid(), signal.SIGKILL)


async def falls(machine):
    print("the last thing it said", file=sys.stderr, flush=True)
    os._exit(3)


async def raises(machine):
    raise ValueError("a device has a bug")


async def complains(machine):
    log.warning("the guest's driver broke a rule")
    await trio.to_thread.run_sync(log.info, "too quiet to be heard")
    await trio.to_thread.run_sync(log.error, "from a thread")
    await trio.sleep_forever()


async def litters(machine):
    """Drops what only the garbage collector finds, and says when it has."""

    class Knot:
        def __del__(self):
            machine.say("collected")

    knot = Knot()
    knot.itself = knot
    del knot
    while True:
        for _ in range(1000):
            cycle = []
            cycle.append(cycle)
        await trio.sleep(0.001)


async def forks(machine):
    """Leaves a child that holds all that this process has open."""
    if os.fork() == 0:
        time.sleep(30)  # noqa: ASYNC251 - no loop runs in a fork
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


# --- the platform ------------------------------------------------------------------------------


class SocketSide:
    """Channels whose streams are sockets, as vsock's are."""

    def __init__(self, inner):
        self._inner = inner

    async def connect(self, port):
        inner = await self._inner.connect(port)
        ours, theirs = (
            trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair()
        )

        async def carry():
            try:
                async with inner, ours, trio.open_nursery() as nursery:
                    nursery.start_soon(relayed, inner, ours)
                    nursery.start_soon(relayed, ours, inner)
            except* trio.BrokenResourceError:
                pass

        trio.lowlevel.spawn_system_task(carry)
        return theirs

    def listen(self, port):
        return self._inner.listen(port)


class RigMachine(ScriptedMachine):
    """Counts an exit for each look at the counts."""

    looks = 0

    @property
    def channels(self):
        if self.plan.config.backend_options.get("sockets"):
            return SocketSide(self.memory_channels)
        return self.memory_channels

    def exit_counts(self):
        self.looks += 1
        return {"look": self.looks}

    async def pause(self):
        await super().pause()
        self.say(f"paused {self.paused}")
        if self.plan.config.backend_options.get("linger"):
            await trio.sleep_forever()  # done, and its caller does not know yet

    async def resume(self):
        await super().resume()
        self.say(f"paused {self.paused}")

    async def press_power_button(self):
        await super().press_power_button()
        self.say("pressed")
        self.end(PRESSED)


PRESSED = MachineOutcome(reason=OutcomeReason.POWERED_OFF, detail="Its button was pressed.")


class RigPlatform(ScriptedPlatform):
    """A `ScriptedPlatform`, that tells where it is and fails as it is told."""

    def __init__(self, options):
        super().__init__(globals()[options.get("script", "idle")])
        self.machine_class = RigMachine
        self._options = options

    def kernel_cmdline(self, config):
        return ["rig=1"]

    @asynccontextmanager
    async def start(self, plan):
        failing = self._options.get("fail")
        if failing == "HypervisorCallError":
            raise HypervisorCallError("KVM_CREATE_VM", 16, remedy="Wait.")
        if failing == "RuntimeError":
            raise RuntimeError("a bug of the platform's")
        if failing:
            raise getattr(microvm.errors, failing)("It failed.", remedy="Repair it.")
        if self._options.get("hang"):
            await trio.sleep_forever()
        async with super().start(plan) as machine:
            machine.say(f"pid {os.getpid()}")
            machine.say(f"cmdline {plan.cmdline}")
            yield machine


def make_platform(options):
    if unknown := set(options) - {"script", "fail", "hang", "linger", "sockets", "any"}:
        raise ConfigError("No.", problems=[ConfigProblem(min(unknown), "is no option of it.")])
    return RigPlatform(options)


class Diary(VirtioDevice):
    """Writes into a folder what becomes of it."""

    def __init__(self, folder):
        self._folder = folder

    device_id = 4
    queue_max_sizes = (1,)

    @asynccontextmanager
    async def lifespan(self):
        (self._folder / "entered").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self._folder / "left").write_text(str(os.getpid()))

    async def open_stream(self, name):
        if name != "pages":
            return await super().open_stream(name)
        near, far = trio.testing.memory_stream_pair()

        async def echo():
            async with far:
                await relayed(far, far)

        trio.lowlevel.spawn_system_task(echo)
        return near

    async def command(self, what, arguments):
        match what:
            case "write":
                (self._folder / arguments["page"]).write_text(arguments["text"])
                return {"pages": 1, "pid": os.getpid()}
            case "sleep":
                await trio.sleep_forever()
            case "list":
                return {"pages": ["a"]}
        return await super().command(what, arguments)

    async def run(self, activation):
        await trio.sleep_forever()


def make_diary(options):
    if set(options) != {"folder"} or not isinstance(options["folder"], Path):
        raise ConfigError("No.", problems=[ConfigProblem("folder", "must be a path.")])
    return Diary(options["folder"])


class backend:
    """Named by the entry point ``rig``."""

    @staticmethod
    @hookimpl
    def microvm_register_backend():
        return BackendFactory(
            name="rig",
            summary="scripted machines that a worker process can find",
            # with a button, every test of `stop` would wait for a guest that does not heed it
            capabilities=frozenset(Capability) - {Capability.POWER_BUTTON},
            probe=lambda options: ProbeReport(backend="rig", usable=True, reason="It is a script."),
            create=make_platform,
        )


class device:
    """Named by the entry point ``diary``."""

    @staticmethod
    @hookimpl
    def microvm_register_device():
        return DeviceFactory(name="diary", summary="a diary", virtio_id=4, create=make_diary)
