"""The real agent, built for this machine and run beside the tests: no guest, not process 1."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from microvm_guest.agent import WARNINGS, source_argv
from microvm_guest.client import AgentClient, open_client

sys.path.insert(0, str(Path(__file__).parents[3]))
"""For `tools`, which other tests use as well."""

SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


class NativeAgent:
    """How to start agents of one build."""

    def __init__(self, program: Path) -> None:
        self.program = program

    @contextmanager
    def process(self, option: str, sock: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
        """An agent that has taken over `sock`. It must have ended well when the block is left."""
        number = sock.fileno()
        process = subprocess.Popen(
            [self.program, option, str(number)],
            pass_fds=[number],
            stderr=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": "/", "INHERITED": "yes"},
        )
        sock.close()
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        finally:
            _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, b"")

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AgentClient]:
        """A client of an agent with one connection, which ends with it."""
        ours, theirs = socket.socketpair()
        with self.process("--connected-fd", theirs):
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            async with open_client(stream) as client:
                yield client

    @contextmanager
    def listening(self, directory: Path, option: str = "--listen-fd") -> Iterator[Path]:
        """An agent that listens on the AF_UNIX path given; it is told to end afterwards."""
        path = directory / "agent.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1024)
        with self.process(option, listener) as process:
            yield path
            process.terminate()

    @contextmanager
    def process_limits(self, directory: Path, *, descriptors: int) -> Iterator[tuple[Path, int]]:
        """An agent that takes forwards and may have no more descriptors, and its process id."""
        path = directory / "agent.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1024)
            words = [str(self.program), "--forward-fd", str(listener.fileno())]
            process = subprocess.Popen(
                ["prlimit", f"--nofile={descriptors}:{descriptors}", *_without_root(), *words],
                pass_fds=[listener.fileno()],
            )
        try:
            yield path, process.pid
            process.terminate()
        finally:
            process.wait(timeout=30)
        assert process.returncode == 0


def _without_root() -> list[str]:
    """Root's agent would raise its own limit."""
    return ["setpriv", "--bounding-set=-sys_resource", "--"] if os.geteuid() == 0 else []


def _build(directory: Path, *flags: str) -> NativeAgent:
    if shutil.which("gcc") is None:
        pytest.fail("The agent's tests compile it: apt-get install gcc libc6-dev")
    program = directory / "microvm-agent"
    subprocess.run(["gcc", *WARNINGS, *flags, "-o", str(program), *source_argv()], check=True)
    return NativeAgent(program)


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> NativeAgent:
    """The agent with address and undefined-behaviour sanitizers: what they find ends it."""
    return _build(tmp_path_factory.mktemp("agent"), *SANITIZERS)


@pytest.fixture(scope="session")
def plain_agent(tmp_path_factory: pytest.TempPathFactory) -> NativeAgent:
    """The agent as it is, for what is about numbers and namespaces."""
    return _build(tmp_path_factory.mktemp("plain"), "-Os", "-static")
