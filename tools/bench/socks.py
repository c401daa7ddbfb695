"""SOCKS5 through a guest, against a direct connection and ``ssh -D`` on the same machine.

The same server and the same client, each a process of its own, three ways in turn. The guest
reaches the server by passt, as a guest of `microvm socks5` does.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from microvm import Machine, MachineConfig, NetConfig
from tools.socks_clients import sshd, unused_port

ROUNDS = 200


@contextmanager
def server() -> Iterator[int]:
    argv = [sys.executable, "-m", "tools.bench.socks_peer", "serve"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()


@contextmanager
def ssh_d() -> Iterator[int]:
    """The port of an ``ssh -D`` to an sshd of this machine's."""
    with tempfile.TemporaryDirectory() as name, sshd(Path(name)) as words:
        dynamic = unused_port()
        forward = ["-N", "-D", f"127.0.0.1:{dynamic}", "-oExitOnForwardFailure=yes"]
        with subprocess.Popen(["ssh", *forward, *words, "localhost"]) as ssh:
            wait_for(dynamic)
            yield dynamic
            ssh.terminate()


def wait_for(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return


async def measured(proxy_port: int, host: str, port: int, size_mib: int) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tools.bench.socks_peer", "measure"]
    words = [*argv, str(proxy_port), host, str(port), str(size_mib), str(ROUNDS)]
    done = await trio.run_process(words, capture_stdout=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def ratios(of: dict[str, Any], to: dict[str, Any]) -> dict[str, float]:
    def figure(value: Any) -> float:
        return float(value["median"] if isinstance(value, dict) else value)

    return {name: round(figure(of[name]) / figure(to[name]), 4) for name in of}


async def socks(size_mib: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    network = NetConfig(backend="passt", options={"host_access": True})
    with server() as port, ssh_d() as ssh_port:
        config = MachineConfig(mem_size_mib=64, nets=(network,))
        async with Machine(config) as machine, await machine.socks5() as proxy:
            route = (await machine.run(["ip", "route"], check=True)).stdout.decode()
            gateway = route.split("default via ")[1].split()[0]
            proxy_port = getattr(proxy.address, "port", 0)
            results["backend"] = machine.backend.name
            results["direct"] = await measured(0, "127.0.0.1", port, size_mib)
            results["ssh_d"] = await measured(ssh_port, "127.0.0.1", port, size_mib)
            results["guest"] = await measured(proxy_port, gateway, port, size_mib)
    results["guest_to_direct"] = ratios(results["guest"], results["direct"])
    results["guest_to_ssh_d"] = ratios(results["guest"], results["ssh_d"])
    return results
