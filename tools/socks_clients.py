"""Programs that people send through a SOCKS5 proxy, for tests and benches: OpenSSH, PySocks, httpx.

PySocks and httpx are imported where they are used: a bench needs neither.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from microvm.forwards import TcpAddress

SSH_PROGRAMS = ("ssh", "sshd", "ssh-keygen", "nc")


def missing(*programs: str) -> list[str]:
    """Those of them that this host lacks."""
    return [program for program in programs if shutil.which(program) is None]


def unused_port() -> int:
    """A TCP port of 127.0.0.1 at which nobody listens just now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def sshd(folder: Path) -> Iterator[list[str]]:
    """An OpenSSH server on 127.0.0.1 that lets this user in, and the client's words for it.

    What is left to say is the host: whatever leads to 127.0.0.1 from where the client's proxy is.
    """
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    port = unused_port()
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nPermitRootLogin yes\n"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    # It wants its own whole path: it starts itself anew for each connection.
    argv = [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config")]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if b"Server listening" in line:
                    break
            options = {
                "IdentityFile": folder / "user",
                "IdentitiesOnly": "yes",
                "UserKnownHostsFile": "/dev/null",
                "StrictHostKeyChecking": "no",
                "LogLevel": "ERROR",
            }
            yield ["-F", "none", "-p", str(port)] + [f"-o{n}={v}" for n, v in options.items()]
        finally:
            process.terminate()
            process.stderr.close()


async def run_by_ssh(
    proxy: TcpAddress, words: list[str], host: str, command: str, data: bytes
) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command by `ssh -o ProxyCommand`, with `data` on its standard input."""
    through = f"-oProxyCommand=nc -X 5 -x {proxy} %h %p"
    return await trio.run_process(
        ["ssh", through, *words, host, command],
        stdin=data,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


async def fetch_by_pysocks(proxy: TcpAddress, host: str, port: int, path: str = "/") -> bytes:
    """The body of a page, by a blocking socket of PySocks'; names are the proxy's to resolve.

    Raises:
        OSError: the proxy said no; PySocks' words have its code in them.
    """
    import socks

    def fetch() -> bytes:
        with socks.socksocket() as sock:
            sock.set_proxy(socks.SOCKS5, proxy.host, proxy.port, rdns=True)
            sock.connect((host, port))
            sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = bytearray()
            while piece := sock.recv(65536):
                answer += piece
        return bytes(answer).partition(b"\r\n\r\n")[2]

    return await trio.to_thread.run_sync(fetch)


async def fetch_by_httpx(proxy: TcpAddress, url: str) -> bytes:
    """The body of a page, by httpx on trio, which speaks SOCKS5 by itself."""
    import httpx

    async with httpx.AsyncClient(proxy=f"socks5://{proxy}", timeout=60) as client:
        answer = await client.get(url)
        return answer.raise_for_status().content
