"""Bytes by passt to a peer on another host: one in a network namespace of its own, by a veth pair.

    unshare --net python net_beyond_passt.py UDP_PING SIZE

To a peer on its own host passt goes another way, and a worse one (docs/devices/net.md).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent))
from net_peer import Peer, check_traffic, peer_at

from microvm import Machine, MachineConfig, NetConfig
from microvm.testing.namespace import ip

OURS, NEXT, PEER = "10.78.0.1", "10.78.0.2", "198.51.100.7"
LINK, FAR_LINK = "mvnear", "mvfar"


async def be_the_peer(size: int) -> None:
    """Serve at the far end of the pair; print where, and the digest of what each sender sent."""
    told = 0
    async with peer_at(PEER, size) as peer:
        print(json.dumps([peer.source, peer.sink, peer.echo]), flush=True)
        while True:
            for digest in peer.taken[told:]:
                print(digest, flush=True)
            told = len(peer.taken)
            await trio.sleep(0.1)


@asynccontextmanager
async def peer_beyond(size: int) -> AsyncIterator[Peer]:
    """A peer in a namespace that is reached by routing only."""
    words = ["unshare", "--net", sys.executable, str(Path(__file__)), "--peer", str(size)]
    async with trio.open_nursery() as nursery:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = await nursery.start(partial(trio.run_process, words, **pipes))
        lines = _lines(child.stdout)
        assert await anext(lines) == "there"
        ip("link", "add", LINK, "type", "veth", "peer", "name", FAR_LINK)
        ip("link", "set", FAR_LINK, "netns", str(child.pid))
        ip("addr", "add", f"{OURS}/24", "dev", LINK)
        ip("link", "set", LINK, "up")
        ip("route", "add", "default", "via", NEXT)
        await child.stdin.send_all(b"\n")
        peer = Peer(PEER, size, *json.loads(await anext(lines)))

        async def listen() -> None:
            async for digest in lines:
                peer.taken.append(digest)

        nursery.start_soon(listen)
        yield peer
        nursery.cancel_scope.cancel()


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode()


async def main(udp_ping: bytes, size: int) -> None:
    """Boot, and speak."""
    config = MachineConfig(nets=(NetConfig(backend="passt"),))
    async with peer_beyond(size) as peer, Machine(config) as machine:
        await check_traffic(machine, peer, PEER, udp_ping)


if __name__ == "__main__":
    ip("link", "set", "lo", "up")
    if sys.argv[1] == "--peer":
        print("there", flush=True)
        sys.stdin.readline()  # until our end of the pair is here
        ip("addr", "add", f"{NEXT}/24", "dev", FAR_LINK)
        ip("addr", "add", f"{PEER}/32", "dev", "lo")
        ip("link", "set", FAR_LINK, "up")
        trio.run(be_the_peer, int(sys.argv[2]))
    else:
        trio.run(main, Path(sys.argv[1]).read_bytes(), int(sys.argv[2]))
