"""`ControlServer`: a machine's end of its control socket."""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import trio

from microvm.control.directory import SUFFIX, open_directory
from microvm.control.lines import (
    COPIES,
    MAX_REQUEST_BYTES,
    OF_DEVICES,
    BadRequest,
    LineReader,
    answer,
    parse_device,
    parse_paths,
    parse_request,
    refusal,
)
from microvm.errors import ConfigError, GuestGone, MicrovmError
from microvm.unix_sockets import is_trusted, peer_uid
from microvm.worker.relay import descriptor_of

if TYPE_CHECKING:
    from microvm._machine import Machine

log = logging.getLogger("microvm")

T = TypeVar("T")

MAX_CLIENTS: Final = 128
BACKLOG: Final = 128
REQUEST_WITHIN_S: Final = 60.0
"""From one answer to the whole of the next request."""
ANSWER_WITHIN_S: Final = 10.0
"""For a client to read what it asked for."""
LAST_ANSWERS_WITHIN_S: Final = 0.5
"""For those who asked for the machine's end to be told of it."""
CHUNK_BYTES: Final = 4096


class ControlServer:
    """Serves one machine to other programs of its user.

    Args:
        name: What they find it by.
        machine: The machine.
    """

    def __init__(self, name: str, machine: Machine) -> None:
        self._name = name
        self._machine = machine
        self._clients = 0
        self._nursery: trio.Nursery | None = None
        self._answering = 0
        self._idle = trio.Event()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """To be held open around the machine's life; the name is taken, and given back behind it.

        Raises:
            ConfigError: another machine has the name, or there is no place for sockets.
        """
        directory = open_directory(create=True)
        assert directory is not None
        try:
            bound = await directory.listen(f"{self._name}{SUFFIX}", BACKLOG)
            try:
                listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound.sock))
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._accept, listener, nursery)
                    yield
                    with trio.move_on_after(LAST_ANSWERS_WITHIN_S):
                        while self._answering:
                            self._idle = trio.Event()
                            await self._idle.wait()
                    nursery.cancel_scope.cancel()
            finally:
                bound.close()
        finally:
            directory.close()

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Take clients; short of descriptors, trio waits a little and says so."""
        await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One client. Whatever it does, and whatever goes wrong, ends this connection alone."""
        self._clients += 1
        try:
            async with stream:
                if not is_trusted(peer_uid(stream.socket)):
                    return
                if self._clients > MAX_CLIENTS:
                    busy = BadRequest(
                        "Too many programs talk to this machine.",
                        remedy="End some of them, such as microvm console, stats or cp.",
                    )
                    await stream.send_all(refusal(busy))
                    return
                await self._converse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone
        except Exception:
            log.exception("A client of the machine %s could not be served.", self._name)
        finally:
            self._clients -= 1

    async def _converse(self, stream: trio.SocketStream) -> None:
        lines = LineReader(MAX_REQUEST_BYTES)
        while True:
            try:
                line = await _next_line(stream, lines)
                if line is None:
                    return
            except BadRequest as error:
                await self._say(stream, refusal(error))
                return
            try:
                verb = parse_request(line)
                if verb == "console":
                    await self._console(stream, lines.rest())
                    return
                if verb in COPIES:
                    paths = parse_paths(line)
                    said = answer(await self._copy(verb, *paths, stream, lines))
                elif verb in OF_DEVICES:
                    device, name, arguments = parse_device(line)
                    self._must_run()
                    if verb == "device-stream":
                        await self._give_stream(device, name, stream, lines)
                        continue
                    command = partial(self._machine.device_command, device, name, **arguments)
                    said = answer(dict(await _while_there(stream, lines, command)))
                else:
                    said = answer(await self._answer(verb))
            except MicrovmError as error:
                said = refusal(error)
            if not await self._say(stream, said):
                return

    async def _say(self, stream: trio.SocketStream, said: bytes) -> bool:
        """Send an answer; whether the client took it."""
        with trio.move_on_after(ANSWER_WITHIN_S) as bound:
            await stream.send_all(said)
        return not bound.cancelled_caught

    async def _answer(self, verb: str) -> dict[str, Any]:
        self._answering += 1
        try:
            match verb:
                case "info":
                    return self._info()
                case "stats":
                    self._must_run()
                    return self._machine.metrics.to_json()
                case _:
                    self._must_run()
                    outcome = await self._machine.stop()
                    return {"reason": outcome.reason.value, "detail": outcome.detail}
        finally:
            self._answering -= 1
            self._idle.set()

    # --- devices ---------------------------------------------------------------------------

    async def _give_stream(
        self, device: str, name: str, client: trio.SocketStream, lines: LineReader
    ) -> None:
        """Hand a device's stream over as a socket: from there on it is between the two of them."""
        assert self._nursery is not None
        opening = partial(self._machine.open_device_stream, device, name)
        opened = await _while_there(client, lines, opening)
        descriptor = descriptor_of(opened, self._nursery)
        try:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            line = answer({})
            with trio.fail_after(ANSWER_WITHIN_S):
                sent = await client.socket.sendmsg([line], [rights])
                await client.send_all(line[sent:])
        except (OSError, trio.TooSlowError) as error:
            raise trio.BrokenResourceError("the client has gone") from error
        finally:
            os.close(descriptor)

    # --- copies ----------------------------------------------------------------------------

    async def _copy(
        self, verb: str, local: str, guest: str, stream: trio.SocketStream, lines: LineReader
    ) -> dict[str, Any]:
        """Copy between the guest and what our own user may read and write."""
        self._must_run()
        machine = self._machine
        copy = partial(machine.copy_in, local, guest)
        if verb == "copy-out":
            copy = partial(machine.copy_out, guest, local)
        self._answering += 1
        try:
            return attrs.asdict(await _while_there(stream, lines, copy))
        except OSError as error:
            raise ConfigError(f"{local} can't be copied: {error.strerror or error}.") from error
        finally:
            self._answering -= 1
            self._idle.set()

    def _must_run(self) -> None:
        if self._machine.state == "starting":
            raise GuestGone("The machine is still starting.", remedy="Try again in a moment.")

    def _info(self) -> dict[str, Any]:
        machine = self._machine
        backend = None if machine.state == "starting" else machine.backend.name
        return {
            "name": self._name,
            "pid": os.getpid(),
            "state": machine.state,
            "backend": backend,
            "mem_size_mib": machine.config.mem_size_mib,
            "vcpu_count": machine.config.vcpu_count,
            "console": machine.console_path,
        }

    # --- the console -----------------------------------------------------------------------

    async def _console(self, stream: trio.SocketStream, typed: bytes) -> None:
        """Join the client to the console, until it leaves or the guest has printed its last."""
        self._must_run()
        async with await self._machine.open_console() as console:
            await stream.send_all(answer({}))
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_type, stream, console, typed, nursery.cancel_scope)
                    async for chunk in console:
                        await stream.send_all(chunk)
                    nursery.cancel_scope.cancel()
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass


async def _while_there(
    client: trio.SocketStream, lines: LineReader, work: Callable[[], Awaitable[T]]
) -> T:
    """Do what a client asked for and that may take long; whoever leaves before gives it up.

    What it says meanwhile is kept for its turn: a line's worth. Behind more than that, it is not
    seen to leave.

    Raises:
        trio.BrokenResourceError: the client has left.
        Exception: of the work.
    """
    done: list[T] = []
    failure: Exception | None = None

    async def watch(working: trio.CancelScope) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while not lines.is_full:
                data = bytes(await client.receive_some(CHUNK_BYTES))
                if not data:
                    break
                lines.feed(data)
            else:
                return
        working.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        try:
            done.append(await work())
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not done:
        raise trio.BrokenResourceError("the client has gone")
    return done[0]


async def _next_line(stream: trio.SocketStream, lines: LineReader) -> bytes | None:
    """The next request; None if the client leaves, or does not say it in time."""
    with trio.move_on_after(REQUEST_WITHIN_S):
        while (line := lines.next()) is None:
            data = await stream.receive_some(CHUNK_BYTES)
            if not data:
                return None
            lines.feed(bytes(data))
        return line
    return None


async def _type(
    stream: trio.SocketStream,
    console: trio.abc.HalfCloseableStream,
    typed: bytes,
    client: trio.CancelScope,
) -> None:
    """Carry what the client types; its end is the client's."""
    while True:
        if typed:
            await console.send_all(typed)
        typed = bytes(await stream.receive_some(CHUNK_BYTES))
        if not typed:
            client.cancel()
            return
