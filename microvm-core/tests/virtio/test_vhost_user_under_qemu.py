"""The vhost-user server under the real QEMU, with a guest of a few hundred bytes.

QEMU's vhost-user-vsock front end keeps the event queue to itself, so that the device has two of
its three. The guest offers a buffer and sends one packet; the device answers into the buffer;
the guest leaves with an exit code made of the answer and of the configuration space.
"""

import functools
import json
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from microvm.abc import Activation, VirtioDevice
from microvm.testing.micro_guest import MicroGuest
from microvm.virtio.chain import DESCRIPTOR
from microvm.virtio.features import VERSION_1
from microvm.virtio.ids import DeviceType
from microvm.virtio.mmio.registers import CONFIG
from microvm.virtio.queue import QueueLayout
from microvm.virtio.vhost_user import serve_vhost_user

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")

VIRTIO_SLOTS = [0xFEB0_0000 + 0x200 * slot for slot in range(24)]
"""Where QEMU's `microvm` machine puts virtio-mmio devices."""
DEBUG_EXIT_PORT = 0xF4
BUFFER = 0x40_0000
PACKET = 0x40_1000
RINGS = [
    QueueLayout(size=8, desc=base, avail=base + 0x1000, used=base + 0x2000)
    for base in (0x41_0000, 0x42_0000, 0x43_0000)
]
CID = 42
ANSWER = 7


def guest() -> bytes:
    """Send a packet, wait for the answer, exit with its first byte plus the CID's."""
    program = MicroGuest()
    receive, transmit, _ = RINGS
    one_offered = struct.pack("<HHH", 0, 1, 0)
    program.data(receive.desc, DESCRIPTOR.pack(BUFFER, 64, 2, 0))
    program.data(receive.avail, one_offered)
    program.data(transmit.desc, DESCRIPTOR.pack(PACKET, 4, 0, 0))
    program.data(transmit.avail, one_offered)
    program.data(PACKET, b"ping")
    program.find_device(DeviceType.VSOCK, VIRTIO_SLOTS)
    program.drive(RINGS, VERSION_1)
    program.notify(0)
    program.notify(1)
    program.wait_for_u16(receive.used + 2, 1)
    program.load_byte(BUFFER)
    program.add_register_byte(CONFIG)
    program.out_al(DEBUG_EXIT_PORT)
    program.halt()
    return program.image()


class Answering(VirtioDevice):
    """Takes the packet; answers in the run whose number is `answers_in`."""

    device_id = DeviceType.VSOCK
    queue_max_sizes = (128, 128, 128)

    def __init__(self, answers_in: int) -> None:
        self.answers_in = answers_in
        self.activations: list[Activation] = []
        self.packets: list[bytes] = []
        self.heard = trio.Event()
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def read_config(self, offset: int, length: int) -> bytes:
        return CID.to_bytes(8, "little")[offset : offset + length].ljust(length, b"\0")

    async def run(self, activation: Activation) -> None:
        self.activations.append(activation)
        receive, transmit = activation.queues
        while not self.packets:
            await transmit.doorbell.wait()
            for chain in transmit.queue.pop_all():
                self.packets += [bytes(view) for view in chain.readable]
                transmit.queue.add_used(chain.head, 0)
            transmit.notify()
        self.heard.set()
        while len(self.activations) == self.answers_in:
            for chain in receive.queue.pop_all():
                chain.writable[0][0] = ANSWER
                receive.queue.add_used(chain.head, 1)
            receive.notify()
            await receive.doorbell.wait()
        await trio.sleep_forever()


@asynccontextmanager
async def qemu(
    sock: socket.socket, monitor: socket.socket, kernel: Path
) -> AsyncIterator[trio.Process]:
    """QEMU with a vhost-user-vsock device whose back end is at the other end of `sock`."""
    command = [
        str(QEMU),
        *("-M", "microvm,acpi=off,memory-backend=m0", "-accel", "tcg", "-m", "64"),
        *("-object", "memory-backend-memfd,id=m0,size=64M,share=on"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-chardev", f"socket,id=c0,fd={sock.fileno()}"),
        *("-device", "vhost-user-vsock-device,chardev=c0"),
        *("-device", f"isa-debug-exit,iobase={DEBUG_EXIT_PORT:#x},iosize=1"),
        *("-chardev", f"socket,id=q0,fd={monitor.fileno()}", "-qmp", "chardev:q0"),
        *("-kernel", str(kernel)),
    ]
    async with trio.open_nursery() as nursery:
        run = functools.partial(
            trio.run_process,
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=(sock.fileno(), monitor.fileno()),
            check=False,
        )
        process: trio.Process = await nursery.start(run)
        sock.close()
        monitor.close()
        yield process


class Monitor:
    """QEMU's monitor, as far as it is needed here."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._buffer = b""

    async def send(self, name: str) -> None:
        """Give a command whose return may never come, since the guest may end before it."""
        await self._stream.send_all(json.dumps({"execute": name}).encode())

    async def command(self, name: str) -> None:
        """Run a command and wait for its return."""
        await self.send(name)
        while "return" not in await self._next():
            pass

    async def _next(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            data = await self._stream.receive_some()
            assert data, "QEMU hung up."
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def aclose(self) -> None:
        await self._stream.aclose()


async def play(device: Answering, kernel: Path, *, pause: bool) -> int:
    """Run the guest to its end, and return QEMU's exit code."""
    ours, theirs = socket.socketpair()
    monitor, monitored = socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_vhost_user, ours, device)
        async with qemu(theirs, monitored, kernel) as process:
            control = Monitor(monitor)
            if pause:
                await device.heard.wait()
                await control.command("qmp_capabilities")
                await control.command("stop")
                await control.send("cont")
            code = await process.wait()
        await control.aclose()
    return code


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    image = tmp_path / "guest.elf"
    image.write_bytes(guest())
    return image


def exit_code(value: int) -> int:
    """What QEMU makes of a value written to its isa-debug-exit device."""
    return value << 1 | 1


async def test_a_guest_under_qemu_reads_the_configuration_and_is_served(kernel: Path) -> None:
    device = Answering(answers_in=1)
    assert await play(device, kernel, pause=False) == exit_code(ANSWER + CID)
    assert device.packets == [b"ping"]
    (activation,) = device.activations
    assert activation.features == VERSION_1
    assert len(activation.queues) == 2
    assert device.resets == 2  # before the run, and when the guest was gone


async def test_a_pause_of_qemu_is_a_resumption_for_the_device(kernel: Path) -> None:
    device = Answering(answers_in=2)
    assert await play(device, kernel, pause=True) == exit_code(ANSWER + CID)
    assert len(device.activations) == 2
    assert device.resets == 2


async def test_qemu_killed_is_an_end_and_no_error(kernel: Path) -> None:
    device = Answering(answers_in=0)
    ours, theirs = socket.socketpair()
    monitor, monitored = socket.socketpair()
    with monitor:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_vhost_user, ours, device)
            async with qemu(theirs, monitored, kernel) as process:
                await device.heard.wait()
                process.send_signal(signal.SIGKILL)
    assert len(device.activations) == 1
