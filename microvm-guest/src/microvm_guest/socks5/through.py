"""The way through a guest: its SOCKS5 server, and those who use it from the host.

The server is the agent's own program in a process of its own (agent/socks5.c), started when it is
first needed, with a user of its own: a routing rule for that user is a rule for everything that
goes through it, its questions to name servers included.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from microvm.errors import GuestError, GuestRefused, MicrovmError
from microvm.forwards.addresses import LOOPBACK, TcpAddress, VsockAddress
from microvm.forwards.carry import carry
from microvm_guest.forwarding import connect_to
from microvm_guest.protocol import RunFlag, RunRequest
from microvm_guest.socks5.client_half import ClientHalf
from microvm_guest.socks5.negotiate import hear, reply_of, request
from microvm_guest.socks5.server_half import ServerHalf
from microvm_guest.socks5.wire import Command, Credentials, Destination, Reply

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream

    from microvm.abc import GuestChannels
    from microvm.forwards.addresses import UnixAddress
    from microvm.forwards.forward import Handle
    from microvm_guest.client import AgentClient
    from microvm_guest.process import AgentProcess

    GuestAddress = TcpAddress | UnixAddress

log = logging.getLogger("microvm.socks5")

SERVER_PORT: Final = 1080
"""In the guest, on its loopback, where another one is taken if it is not free; and on vsock."""
SERVER_UID: Final = 1080
"""The user that the guest's server is. Nobody else should be."""
ASK_WITHIN_S: Final = 10.0
"""For a client that we answer ourselves to say what it wants."""
START_WITHIN_S: Final = 30.0
"""For the guest's server to say where it is, which takes a busy guest a moment."""
DEATH_KNOWN_WITHIN_S: Final = 1.0
MAX_LINE: Final = 200
_CONNECT: Final = frozenset({Command.CONNECT})


class GuestSocks5:
    """The server in one guest, and streams through it.

    Args:
        client: The guest's agent, which starts the server.
        channels: To the same guest.
    """

    def __init__(self, client: AgentClient, channels: GuestChannels) -> None:
        self._client = client
        self._channels = channels
        self._one_start = trio.Lock()
        self._process: AgentProcess | None = None
        self._at: VsockAddress | TcpAddress | None = None

    async def connect(self, host: str, port: int) -> HalfCloseableStream:
        """As `Guest.connect_through`."""
        destination = Destination(host, port)
        stream = await self._open(None)
        try:
            await request(stream, ClientHalf(destination, eager=True), destination)
        except BaseException as error:
            await trio.aclose_forcefully(stream)
            if isinstance(error, trio.BrokenResourceError):
                raise GuestError("The stream to the guest's SOCKS5 server broke.") from error
            raise
        return stream

    async def handler(
        self, server: GuestAddress | None, login: tuple[str, str] | None = None
    ) -> Handle:
        """As `Guest.socks5_handler`."""
        credentials = None if login is None else Credentials(*login)
        if server is None:
            await self._running()

        async def check(stream: HalfCloseableStream) -> None:
            half = ServerHalf(_CONNECT, credentials)
            asked = None
            with trio.move_on_after(ASK_WITHIN_S):
                asked = await hear(stream, half)
            if asked is None:
                return
            try:
                other = await self._open(server)
            except MicrovmError:
                await stream.send_all(half.reply(Reply.NETWORK_UNREACHABLE))
                raise
            try:
                bound = await request(other, ClientHalf(asked.destination), asked.destination)
            except BaseException as error:
                await trio.aclose_forcefully(other)
                if isinstance(error, (MicrovmError, trio.BrokenResourceError)):
                    await stream.send_all(half.reply(reply_of(error)))
                raise
            async with other:
                await stream.send_all(half.reply(Reply.SUCCEEDED, bound))
                await carry(stream, other)

        async def handle(stream: HalfCloseableStream) -> None:
            try:
                other = await self._open(server)
            except MicrovmError:
                await _tell_no_way(stream)
                raise
            await carry(stream, other)

        async def check_and_handle(stream: HalfCloseableStream) -> None:
            try:
                await check(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the client has gone

        return handle if credentials is None else check_and_handle

    async def _open(self, server: GuestAddress | None) -> HalfCloseableStream:
        """A stream to the server. One that has died is started again."""
        if server is not None:
            return await connect_to(self._channels, server)
        try:
            return await self._connect_to(await self._running())
        except GuestRefused:
            if not await self._has_died():
                raise
            return await self._connect_to(await self._running())

    async def _has_died(self) -> bool:
        """Whether the server that has just refused is no more. Its end may be on its way to us."""
        process = self._process
        if process is None:
            return False
        with trio.move_on_after(DEATH_KNOWN_WITHIN_S):
            await process.wait()
        return process.ended

    async def _connect_to(self, at: VsockAddress | TcpAddress) -> HalfCloseableStream:
        if isinstance(at, VsockAddress):
            return await self._channels.connect(at.port)
        return await connect_to(self._channels, at)

    async def _running(self) -> VsockAddress | TcpAddress:
        """Where the server listens; it is started if it does not run."""
        async with self._one_start:
            if self._process is None or self._process.ended or self._at is None:
                self._at = await self._start()
            return self._at

    async def _start(self) -> VsockAddress | TcpAddress:
        status = await self._client.status()
        pid = status.get("pid", 1)
        # An agent that is a guest's first process has the guest's vsock; one that is not may be
        # beside us, and AF_VSOCK lead somewhere else. Then the server is reached by a forward.
        vsock_port = SERVER_PORT if pid == 1 else 0
        words = ("--socks5", LOOPBACK, str(SERVER_PORT), str(vsock_port), str(SERVER_UID))
        # The agent's own file need not be in a guest's root any more.
        argv = [f"/proc/{pid}/exe", *words]
        process = await self._client.launch(RunRequest(argv=argv, flags=RunFlag.NO_STDIN))
        try:
            with trio.fail_after(START_WITHIN_S):
                at = await _read_address(process)
        except trio.TooSlowError as error:
            process.release()
            raise GuestError("The guest's SOCKS5 server did not say where it is.") from error
        except BaseException:
            process.release()
            raise
        self._process = process
        log.debug("the guest's SOCKS5 server is at %s", at)
        return at


async def _read_address(process: AgentProcess) -> VsockAddress | TcpAddress:
    """Where a server that has just been started says it listens.

    Raises:
        GuestError: it said something else.
    """
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < MAX_LINE:
            piece = await process.stdout.receive_some(MAX_LINE)
            if not piece:
                break
            line += piece
        host, port, on_vsock = line.decode("ascii").split()
        if int(on_vsock):
            return VsockAddress(port=int(on_vsock))
        return TcpAddress(host=host, port=int(port))
    except (ValueError, MicrovmError) as error:
        said = (await process.stderr.receive_some(1000)).decode("utf-8", "replace")
        raise GuestError(
            f"The guest's SOCKS5 server did not start: {said.strip() or line!r}"
        ) from error


async def _tell_no_way(stream: HalfCloseableStream) -> None:
    """Answer a client whose guest can't be reached, in its own protocol."""
    half = ServerHalf()
    try:
        with trio.move_on_after(ASK_WITHIN_S):
            if await hear(stream, half) is not None:
                await stream.send_all(half.reply(Reply.NETWORK_UNREACHABLE))
    except trio.BrokenResourceError:
        return
