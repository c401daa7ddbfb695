"""Guest ports for other processes: AF_UNIX sockets as Firecracker's clients know them.

Every client and server here is a process of its own, with nothing but the standard library.
"""

import functools
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from microvm import Machine, MachineConfig, VsockConfig

pytestmark = [pytest.mark.linux_guest, pytest.mark.usefixtures("leaves_nothing")]

ECHO, DEAF, DIALLED = 7000, 7001, 9000

CLIENT = """
import socket, sys
path, port = sys.argv[1], int(sys.argv[2])

def connect(port=port):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(path)
    sock.sendall(b"CONNECT %d\\n" % port)
    return sock

def greeting(sock):
    line = b""
    while not line.endswith(b"\\n"):
        byte = sock.recv(1)
        if not byte:
            break
        line += byte
    return line
"""


def command(program: str, path: Path, port: int) -> list[str]:
    """What runs a program in a process of its own."""
    return [sys.executable, "-I", "-c", CLIENT + program, str(path), str(port)]


async def python(program: str, path: Path, port: int) -> bytes:
    """Run a program to its end, and give what it printed."""
    done = await trio.run_process(command(program, path, port), capture_stdout=True)
    return done.stdout


def starter(program: str, path: Path, port: int) -> Callable[..., Awaitable[object]]:
    """For `nursery.start`: runs a program, which must end well, and gives its `trio.Process`."""
    return functools.partial(trio.run_process, command(program, path, port), stdout=subprocess.PIPE)


@asynccontextmanager
async def echoing(path: Path, peer: bytes) -> AsyncIterator[Machine]:
    """A machine with its socket at `path` and an echo on port 7000."""
    config = MachineConfig(mem_size_mib=64, vsock=VsockConfig(uds_path=path))
    async with Machine(config) as machine:
        install = ["sh", "-c", "cat > /tmp/peer && chmod +x /tmp/peer"]
        await machine.run(install, stdin=peer, check=True)
        async with machine.spawn(["/tmp/peer", "echo", str(ECHO)]) as process:
            assert await process.stdout.receive_some() == b"listening\n"
            yield machine
    assert os.listdir(path.parent) == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "sockets").mkdir()
    return tmp_path / "sockets" / "vsock"


async def test_another_process_reaches_a_guest_port(path: Path, vsock_peer: bytes) -> None:
    program = """
sock = connect()
word, _, number = greeting(sock).rstrip(b"\\n").partition(b" ")
assert word == b"OK" and int(number) > 0, (word, number)
sock.sendall(b"hello")
sock.shutdown(socket.SHUT_WR)
print(sock.makefile("rb").read().decode(), end="")
"""
    async with echoing(path, vsock_peer):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert await python(program, path, ECHO) == b"hello"


async def test_200_reconnects_carry_their_bytes_unchanged(path: Path, vsock_peer: bytes) -> None:
    program = """
import threading
for number in range(200):
    # what comes before the answer to the line must not get lost either
    data = bytes((number + i) % 256 for i in range(997)) * (number % 40)
    sock = connect()
    def send():
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    assert greeting(sock).startswith(b"OK ")
    assert sock.makefile("rb").read() == data, number
    sender.join()
    sock.close()
print("all")
"""
    async with echoing(path, vsock_peer):
        assert await python(program, path, ECHO) == b"all\n"


async def test_a_port_nobody_listens_on_closes_without_a_word(
    path: Path, vsock_peer: bytes
) -> None:
    program = "print(greeting(connect()))"
    async with echoing(path, vsock_peer):
        assert await python(program, path, DEAF) == b"b''\n"


async def test_clients_that_leave_early_or_talk_nonsense_harm_nobody(
    path: Path, vsock_peer: bytes
) -> None:
    program = """
import itertools
line = b"CONNECT 7000\\n"
beginnings = [b"", line[:4], line[:-3], line, line + b"hello", b"\\0" * 5000]
for beginning in itertools.islice(itertools.cycle(beginnings), 120):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    try:
        sock.sendall(beginning)
    except OSError:
        pass
    sock.close()
sock = connect()
assert greeting(sock).startswith(b"OK ")
sock.sendall(b"still there?")
print(sock.recv(100).decode())
"""
    async with echoing(path, vsock_peer) as machine:
        assert await python(program, path, ECHO) == b"still there?\n"
        await machine.run(["true"], check=True)


async def test_a_guest_program_reaches_another_process(path: Path, vsock_peer: bytes) -> None:
    program = """
import os
name = f"{path}_{port}"
server = socket.socket(socket.AF_UNIX)
server.bind(name)
server.listen()
print("listening", flush=True)
sock, _ = server.accept()
sock.sendall(sock.makefile("rb").read().upper())
sock.close()
os.unlink(name)
"""
    dial = ["/tmp/peer", "dial", str(DIALLED)]
    async with echoing(path, vsock_peer) as machine:
        refused = await machine.run(dial)
        assert refused.exit_code == 1
        async with trio.open_nursery() as nursery:
            server = await nursery.start(starter(program, path, DIALLED))
            async with server.stdout:
                assert await server.stdout.receive_some() == b"listening\n"
                answered = await machine.run(dial, stdin=b"hello", check=True)
        assert answered.stdout == b"HELLO"


async def test_a_client_outlives_the_machine_and_hears_of_its_end(
    path: Path, vsock_peer: bytes
) -> None:
    program = """
sock = connect()
assert greeting(sock).startswith(b"OK ")
print("open", flush=True)
try:
    print(sock.recv(1))
except ConnectionResetError:
    print(b"")
"""
    async with trio.open_nursery() as nursery:
        async with echoing(path, vsock_peer):
            client = await nursery.start(starter(program, path, ECHO))
            assert await client.stdout.receive_some() == b"open\n"
        async with client.stdout:
            assert await client.stdout.receive_some() == b"b''\n"
