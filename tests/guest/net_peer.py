"""What a guest speaks to over a network: a source and a sink by TCP, and an echo by UDP."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import attrs
import trio

from microvm import Machine

CHUNK = bytes(range(256)) * 256
UDP_PING = "/tmp/udp_ping"


@attrs.define
class Peer:
    """Where they listen, and what came."""

    address: str
    size: int
    """Bytes that the source sends to each who connects."""
    source: int = 0
    sink: int = 0
    echo: int = 0
    taken: list[str] = attrs.Factory(list)
    """SHA-256 of what each connection to the sink brought."""

    async def send(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # who connected has gone
            for _ in range(self.size // len(CHUNK)):
                await stream.send_all(CHUNK)

    async def take(self, stream: trio.SocketStream) -> None:
        # Without a byte this way the passt of Debian 12 resets the connection after 16 to 24 s: it
        # does not notice the acknowledgement of its SYN.
        await stream.send_all(b"!")
        digest = hashlib.sha256()
        async for data in stream:
            digest.update(data)
        self.taken.append(digest.hexdigest())

    async def answer(self, sock: trio.socket.SocketType) -> None:
        while True:
            data, sender = await sock.recvfrom(1 << 16)
            await sock.sendto(data, sender)


@asynccontextmanager
async def peer_at(address: str, size: int) -> AsyncIterator[Peer]:
    """A peer at an address of the host."""
    peer = Peer(address=address, size=size)
    async with trio.open_nursery() as nursery:
        for name, serve in (("source", peer.send), ("sink", peer.take)):
            (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host=address))
            setattr(peer, name, listener.socket.getsockname()[1])
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.bind((address, 0))
            peer.echo = sock.getsockname()[1]
            nursery.start_soon(peer.answer, sock)
            yield peer
            nursery.cancel_scope.cancel()


async def shell(machine: Machine, script: str, stdin: bytes = b"") -> str:
    """Run a script in the guest; what it printed."""
    done = await machine.run(["sh", "-c", script], stdin=stdin, check=True)
    return done.stdout.decode().strip()


async def check_traffic(machine: Machine, peer: Peer, address: str, udp_ping: bytes) -> None:
    """TCP each way, byte for byte, and datagrams; the guest knows the peer by `address`."""
    # Not from /dev/null: once a guest has shut its direction, the passt of Debian 12 takes no more
    # notice of the window, and goes on in pieces of a few bytes.
    script = f"mkfifo /tmp/open; nc {address} {peer.source} <>/tmp/open | sha256sum"
    received = await shell(machine, script)
    given = hashlib.sha256()
    for _ in range(peer.size // len(CHUNK)):
        given.update(CHUNK)
    assert received.split()[0] == given.hexdigest()
    script = (
        f"head -c {peer.size} /dev/urandom | tee /tmp/sum | nc {address} {peer.sink} >/dev/null"
    )
    # Of what is made on the way a pipe keeps the sum: memory is short.
    script = f"mkfifo /tmp/sum; sha256sum </tmp/sum >/tmp/digest & {script}; wait; cat /tmp/digest"
    sent = await shell(machine, script)
    with trio.fail_after(30):
        while not peer.taken:  # noqa: ASYNC110 - the guest's end comes first
            await trio.sleep(0.01)
    assert peer.taken == [sent.split()[0]]
    await shell(machine, f"cat >{UDP_PING}; chmod +x {UDP_PING}", udp_ping)
    for size in (1, 1000, 1472):
        assert await shell(machine, f"{UDP_PING} {address} {peer.echo} 100 {size}") == "100"
