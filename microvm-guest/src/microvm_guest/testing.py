"""A scripted agent, for tests of everything that stands on one.

`FakeAgent` speaks the protocol at the level of frames, so that a test can say right things and
wrong ones; `serve` makes it a well-behaved agent with a few canned commands. What the host sends
is held to the protocol's own tables.

    async with fake_guest({"uname": FakeCommand(stdout=b"Linux")}) as (client, agent):
        assert (await client.run(["uname"])).stdout == b"Linux"
        assert agent.runs == [("uname",)]
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio
import trio.testing

from microvm_guest._tasks import serving
from microvm_guest.client import AgentClient, open_client
from microvm_guest.ports import HOST_PORT
from microvm_guest.protocol import Channel, ErrorCode, RunFlag
from microvm_guest.protocol.fields import FieldTag, decode_fields, decode_number, encode_field
from microvm_guest.protocol.frames import (
    FROM_HOST,
    MAGIC,
    MAJOR,
    MAX_PAYLOAD,
    MINOR,
    Frame,
    FrameFlag,
    FrameReader,
    FrameType,
)

if TYPE_CHECKING:
    from trio.abc import Stream

    from microvm.abc import GuestChannels

STDIN_WINDOW = 65536
_TWO_U32 = struct.Struct("<II")


@attrs.frozen(kw_only=True)
class FakeCommand:
    """What a canned command does."""

    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int = 0
    signal: int = 0
    """A signal to end by, in place of a code."""
    echo: bool = False
    """Print stdin and end with it, as cat does."""
    hang: bool = False
    """Print, and then run until killed."""


def hello_payload(
    *, major: int = MAJOR, minor: int = MINOR, stdin_window: int = STDIN_WINDOW
) -> bytes:
    """What an agent's HELLO carries."""
    return (
        MAGIC
        + struct.pack("<HH", major, minor)
        + encode_field(FieldTag.BUILD, "fake")
        + encode_field(FieldTag.KERNEL, "6.1.0-fake")
        + encode_field(FieldTag.BOOT_NS, 1_000_000)
        + encode_field(FieldTag.STDIN_WINDOW, stdin_window)
        + encode_field(FieldTag.MAX_COMMANDS, 1000)
    )


class FakeAgent:
    """The agent's end of a connection, driven by a test.

    Args:
        stream: Whatever joins it to a host.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.runs: list[tuple[str, ...]] = []
        """The argument vectors that `serve` was asked to run."""
        self.killed: list[int] = []
        """Signals that `serve` was asked to send; 9 for a command that was let go of."""
        self._reader = FrameReader(FROM_HOST)
        self._commands: dict[int, _Running] = {}

    @classmethod
    async def dial(cls, channels: GuestChannels) -> FakeAgent:
        """Call the host, as an agent does when it is up. `channels` are the guest's."""
        return cls(await channels.connect(HOST_PORT))

    # --- by the frame ---------------------------------------------------------------------

    async def receive(self) -> Frame | None:
        """The host's next frame; None when it has hung up.

        Raises:
            ProtocolViolation: the host sent something that it may not.
        """
        while (frame := self._reader.next_frame()) is None:
            data = await self.stream.receive_some(65536)
            if not data:
                return None
            self._reader.feed(data)
        return frame

    async def expect(self, kind: FrameType) -> Frame:
        """The next frame, which must be of this type; the others are no part of the script."""
        frame = await self.receive()
        assert frame is not None, f"the host hung up in place of {kind.name}"
        assert frame.type is kind, f"{frame.type.name} came in place of {kind.name}"
        return frame

    async def send(
        self, kind: FrameType, stream: int = 0, payload: bytes = b"", flags: int = 0
    ) -> None:
        """Send one frame, right or wrong."""
        await self.stream.send_all(Frame(kind, stream, payload, flags).encode())

    async def greet(self) -> None:
        """Exchange HELLOs."""
        await self.send(FrameType.HELLO, payload=hello_payload())
        await self.expect(FrameType.HELLO)

    async def start(self) -> int:
        """Take a RUN, say STARTED, and give its stream."""
        stream = (await self.expect(FrameType.RUN)).stream
        await self.send(FrameType.STARTED, stream, struct.pack("<I", 100 + stream))
        return stream

    async def finish(self, stream: int, code: int = 0, signal: int = 0) -> None:
        """End a command: both outputs, then EXIT."""
        await self.send(FrameType.STDOUT, stream, flags=FrameFlag.EOF)
        await self.send(FrameType.STDERR, stream, flags=FrameFlag.EOF)
        await self.send(FrameType.EXIT, stream, _TWO_U32.pack(code, signal))

    # --- as a whole -----------------------------------------------------------------------

    async def serve(self, commands: Mapping[str, FakeCommand]) -> None:
        """Greet, then answer as a real agent would, until the host hangs up.

        Args:
            commands: What each program does; one that is not there can't be found.
        """
        try:
            await self.greet()
            await self._serve(commands)
        except trio.BrokenResourceError:
            return  # the host hung up while something was being said

    async def _serve(self, commands: Mapping[str, FakeCommand]) -> None:
        while (frame := await self.receive()) is not None:
            match frame.type:
                case FrameType.PING:
                    await self.send(FrameType.PONG, payload=frame.payload)
                case FrameType.STATUS:
                    await self.send(FrameType.STATUS, payload=encode_field(FieldTag.PID, 1))
                case FrameType.SHUTDOWN:
                    await self.send(FrameType.SHUTDOWN)
                    await self.stream.aclose()
                    return
                case FrameType.RUN:
                    await self._run(frame, commands)
                case _ if frame.stream in self._commands:
                    await self._advance(frame)

    async def _run(self, frame: Frame, commands: Mapping[str, FakeCommand]) -> None:
        fields = list(decode_fields(frame.payload))
        argv = tuple(value.decode() for tag, value in fields if tag is FieldTag.ARG)
        said = dict(fields)
        self.runs.append(argv)
        command = commands.get(argv[0])
        if command is None:
            refusal = struct.pack("<I", ErrorCode.NOT_FOUND) + b"No such file or directory."
            await self.send(FrameType.ERROR, frame.stream, refusal)
            return
        flags = RunFlag(decode_number(FieldTag.RUN_FLAGS, said[FieldTag.RUN_FLAGS]))
        window = decode_number(FieldTag.WINDOW, said[FieldTag.WINDOW])
        merged = FieldTag.TTY in said or RunFlag.MERGE in flags
        running = _Running(command, window, merged, echo=RunFlag.NO_STDIN not in flags)
        self._commands[frame.stream] = running
        await self.send(FrameType.STARTED, frame.stream, struct.pack("<I", 100 + frame.stream))
        await self._pump(frame.stream, running)

    async def _advance(self, frame: Frame) -> None:
        running = self._commands[frame.stream]
        match frame.type:
            case FrameType.STDIN:
                if frame.payload:
                    credit = _TWO_U32.pack(Channel.STDIN, len(frame.payload))
                    await self.send(FrameType.WINDOW, frame.stream, credit)
                running.take(frame.payload, bool(frame.flags & FrameFlag.EOF))
            case FrameType.WINDOW:
                channel, length = _TWO_U32.unpack(frame.payload)
                running.windows[Channel(channel)] += length
            case FrameType.KILL:
                running.kill(struct.unpack("<I", frame.payload)[0])
                self.killed.append(running.signal)
            case FrameType.CLOSE:
                self.killed.append(9)
                del self._commands[frame.stream]
                await self.send(FrameType.EXIT, frame.stream, _TWO_U32.pack(0, 9))
                return
        await self._pump(frame.stream, running)

    async def _pump(self, stream: int, running: _Running) -> None:
        for frame in running.frames(stream):
            await self.stream.send_all(frame.encode())
        if running.over:
            del self._commands[stream]


class _Running:
    """A canned command under way: what it has yet to print, and how much of that it may."""

    def __init__(self, command: FakeCommand, window: int, merged: bool, echo: bool) -> None:
        self._pending = {Channel.STDOUT: bytearray(command.stdout)}
        if merged:
            self._pending[Channel.STDOUT] += command.stderr
        else:
            self._pending[Channel.STDERR] = bytearray(command.stderr)
        self.windows = dict.fromkeys(Channel, window)
        self.signal = command.signal
        self.over = False
        self._code = 0 if command.signal else command.exit_code
        self._echo = command.echo and echo
        self._ended = not (self._echo or command.hang)

    def take(self, data: bytes, eof: bool) -> None:
        if self._echo:
            self._pending[Channel.STDOUT] += data
            self._ended = self._ended or eof

    def kill(self, signal: int) -> None:
        self.signal, self._code = signal, 0
        self._ended = True

    def frames(self, stream: int) -> list[Frame]:
        """What it can say now."""
        frames = []
        for channel, pending in list(self._pending.items()):
            kind = FrameType[channel.name]
            while pending and self.windows[channel]:
                piece = bytes(pending[: min(MAX_PAYLOAD, self.windows[channel])])
                del pending[: len(piece)]
                self.windows[channel] -= len(piece)
                frames.append(Frame(kind, stream, piece))
            if self._ended and not pending:
                frames.append(Frame(kind, stream, b"", FrameFlag.EOF))
                del self._pending[channel]
        if not self._pending:
            self.over = True
            frames.append(Frame(FrameType.EXIT, stream, _TWO_U32.pack(self._code, self.signal)))
        return frames


@asynccontextmanager
async def agent_pair() -> AsyncIterator[tuple[AgentClient, FakeAgent]]:
    """A client that is being served, and the fake agent at the other end of its stream."""
    near, far = trio.testing.memory_stream_pair()
    async with open_client(near) as client:
        yield client, FakeAgent(far)


@asynccontextmanager
async def fake_guest(
    commands: Mapping[str, FakeCommand],
) -> AsyncIterator[tuple[AgentClient, FakeAgent]]:
    """A client of a well-behaved fake agent that has these commands."""
    async with agent_pair() as (client, agent), serving() as nursery:
        nursery.start_soon(agent.serve, commands)
        yield client, agent
