"""A device for the vhost-user server to serve, and what the server may not leave behind."""

import os
from collections.abc import Callable
from pathlib import Path

import trio

from microvm.abc import Activation, ActiveQueue, VirtioDevice
from microvm.testing.vhost_user_frontend import VhostUserFrontEnd
from microvm.virtio.chain import ChainReader, ChainWriter


class Echo(VirtioDevice):
    """Answers each request with its bytes reversed, and takes down what happens to it."""

    device_id = 42
    queue_max_sizes = (64, 64)

    def __init__(self) -> None:
        self.activations: list[Activation] = []
        self.life: list[str] = []
        self.runs_ended = 0

    def read_config(self, offset: int, length: int) -> bytes:
        return bytes(range(offset, offset + length))

    def reset(self) -> None:
        self.life.append("reset")

    async def run(self, activation: Activation) -> None:
        self.activations.append(activation)
        self.life.append("run")
        memory = activation.queues[0].queue
        try:
            async with trio.open_nursery() as nursery:
                for active in activation.queues:
                    nursery.start_soon(self.serve, active)
        finally:
            # Cancelled: memory must still be there while we clean up.
            with trio.CancelScope(shield=True):
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
            memory.enable_notification()
            self.runs_ended += 1

    async def serve(self, active: ActiveQueue) -> None:
        queue = active.queue
        while True:
            await active.doorbell.wait()
            busy = True
            while busy:
                queue.disable_notification()
                for chain in queue.pop_all():
                    reader, writer = ChainReader(chain), ChainWriter(chain)
                    writer.write(reader.read(reader.remaining)[::-1])
                    queue.add_used(chain.head, writer.written)
                active.notify()
                busy = queue.enable_notification()


async def exchange(vmm: VhostUserFrontEnd, index: int, data: bytes) -> bytes:
    """Make a request as a driver does, and return the device's answer."""
    queue = vmm.queues[index]
    queue.want_interrupt()
    queue.add([data], [len(data)])
    queue.kick()
    await queue.irq.wait()
    while not (answers := queue.used()):
        # A run that begins may interrupt for what was used before it.
        await queue.irq.wait()
    (used,) = answers
    return used.data


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until it holds; the test's own bound is the limit."""
    while not condition():
        await trio.lowlevel.checkpoint()


def open_fds() -> set[str]:
    with os.scandir("/proc/self/fd") as entries:
        return {entry.name for entry in entries}


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("guest-ram")
