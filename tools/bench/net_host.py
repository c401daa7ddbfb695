"""The network device without a guest: a driver double on one side, a socket or a TAP on the other.

What is measured is our half alone: queue, header, link. The driver double's own work is measured
too, by a card whose frames go nowhere, and is in every other figure.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from microvm.abc import NetBackend, NetLinks
from microvm.testing.namespace import NoNamespace, network_namespace, tap_interface
from microvm_devices.net.device import NetDevice
from microvm_devices.net.features import F_CSUM, F_HOST_TSO4, F_MRG_RXBUF
from microvm_devices.net.null.link import NullBackend
from microvm_devices.net.packet import HEADER, PLAIN
from microvm_devices.net.stream import StreamLink
from microvm_devices.net.tap import plugin as tap
from microvm_devices.net.testing import ethernet, running, settings

SIZES = (60, 1514, 65226)
FRAMES = 20_000
BATCH = 64
MTU = 65520

DRAIN = """
import sys, socket
sock = socket.socket(fileno=int(sys.argv[1]))
while sock.recv(1 << 20): pass
"""
FLOOD = """
import sys, socket
sock, size = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
record = size.to_bytes(4, "big") + bytes(size)
records = record * max(1, (1 << 20) // len(record))
try:
    while True: sock.sendall(records)
except OSError: pass
"""


class SocketPair(NetBackend):
    """A stream whose other end a program of its own drains or floods."""

    def __init__(self, program: str, size: int) -> None:
        self._program = program
        self._size = size

    @asynccontextmanager
    async def lifespan(self, queues: int) -> NetLinks:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                words = [sys.executable, "-c", self._program, str(theirs.fileno()), str(self._size)]
                peer = subprocess.Popen(words, pass_fds=(theirs.fileno(),))  # noqa: ASYNC220
            try:
                yield [StreamLink(ours)]
            finally:
                ours.close()
                peer.kill()
                peer.wait()


async def sending(backend: NetBackend, size: int) -> dict[str, float]:
    """Frames of `size` bytes from a driver that offers them by the batch."""
    vnet = backend.vnet_header
    features = F_CSUM | F_HOST_TSO4 if vnet else 0
    header = HEADER.pack(1, 1, 0, 1448, 34, 16, 0) if vnet and size > 1514 else PLAIN
    frame = ethernet(bytes(size - 14))
    count = FRAMES if size < 10_000 else FRAMES // 10
    async with running(NetDevice(backend, settings(mtu=MTU)), features) as driver:

        async def batch() -> None:
            for _ in range(BATCH):
                driver.tx.add([header + frame])
            driver.tx.kick()
            done = 0
            while done < BATCH:
                done += len(await driver.tx.wait_used())

        return await timed(batch, count, size)


async def receiving(backend: NetBackend, size: int) -> dict[str, float]:
    """Frames of `size` bytes into buffers of a page."""
    count = FRAMES if size < 10_000 else FRAMES // 10
    device = NetDevice(backend, settings(mtu=MTU))
    async with running(device, F_MRG_RXBUF) as driver:
        driver.offer(*[4096] * 256)

        async def batch() -> None:
            goal = device.counters()["received_frames"] + BATCH
            while device.counters()["received_frames"] < goal:
                used = await driver.rx.wait_used()
                driver.offer(*[4096] * len(used))

        return await timed(batch, count, size)


async def timed(batch: Callable[[], Any], count: int, size: int) -> dict[str, float]:
    await batch()
    cpu, start = time.process_time(), time.perf_counter()
    rounds = max(1, count // BATCH)
    for _ in range(rounds):
        await batch()
    took, used = time.perf_counter() - start, time.process_time() - cpu
    total = rounds * BATCH * size
    return {
        "frames_s": rounds * BATCH / took,
        "mb_s": total / took / 1e6,
        "cpu_s_per_gib": used * (1 << 30) / total,
    }


def net_host(pairs: int) -> dict[str, Any]:
    """Every way at every size, the best of some rounds."""
    results: dict[str, Any] = {}
    for size in SIZES:
        ways: dict[str, Callable[[], Any]] = {
            "nowhere_send": partial(sending, NullBackend(), size),
            "stream_send": partial(sending, SocketPair(DRAIN, size), size),
            "stream_receive": partial(receiving, SocketPair(FLOOD, size), size),
        }
        for name, way in ways.items():
            results[f"{name}_{size}"] = best([trio.run(way) for _ in range(max(1, pairs // 3))])
    try:
        with network_namespace(), tap_interface("mvbench0", "10.78.0.1/24", mtu=9000):
            for size in SIZES:
                backend = tap.create({"name": "mvbench0"})
                results[f"tap_send_{size}"] = best([trio.run(sending, backend, size)])
    except NoNamespace as error:
        results["tap"] = str(error)
    return results


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The round with the most frames: what else ran can only take from it."""
    return max(rounds, key=lambda one: one["frames_s"])
