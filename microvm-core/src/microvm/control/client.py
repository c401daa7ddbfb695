"""The other end of a control socket, for programs that have no loop: the command line's."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, Final

from microvm.control.directory import SUFFIX, machine_names, open_directory
from microvm.control.lines import (
    MAX_ANSWER_BYTES,
    BadRequest,
    LineReader,
    parse_answer,
    request,
)
from microvm.errors import ConfigError, GuestGone, MicrovmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ANSWER_WITHIN_S: Final = 10.0
STOP_WITHIN_S: Final = 30.0
"""A guest is given three seconds to end itself; a busy host takes longer."""
LIST_WITHIN_S: Final = 2.0
"""A machine whose program is stopped, or busy, is listed without what it would have said."""
CHUNK_BYTES: Final = 65536


class ControlClient:
    """A connection to a named machine; a context manager.

    Raises:
        ConfigError: there is none of that name, or no place where it could be.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        directory = open_directory(create=False)
        sock = None
        if directory is not None:
            with contextlib.closing(directory):
                sock = directory.connect(f"{name}{SUFFIX}")
        if sock is None:
            raise ConfigError(
                f"No machine called {name!r} is running.",
                remedy="See which are: microvm ls. One gets a name by: microvm run --name NAME",
            )
        self.sock = sock
        self._lines = LineReader(MAX_ANSWER_BYTES)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()

    def ask(
        self, verb: str, within_s: float | None = ANSWER_WITHIN_S, **more: Any
    ) -> dict[str, Any]:
        """Ask, and wait for the answer; without a bound if `within_s` is None.

        Raises:
            Refused: the machine says no, and why.
            GuestGone: its program did not answer.
        """
        # Behind the answer to this one the guest's bytes begin, and those are not ours.
        chunk = 1 if verb == "console" else CHUNK_BYTES
        return self._exchange(request(verb, **more), within_s, lambda: self.sock.recv(chunk))

    def open_stream(self, device: str, name: str) -> socket.socket:
        """A stream of a device's, as a socket of its own.

        Raises:
            Refused: the machine says no, and why.
            GuestGone: its program did not answer.
        """
        descriptors: list[int] = []

        def receive() -> bytes:
            data, came, _, _ = socket.recv_fds(self.sock, CHUNK_BYTES, 1)
            descriptors.extend(came)
            return data

        try:
            line = request("device-stream", device=device, name=name)
            self._exchange(line, ANSWER_WITHIN_S, receive)
            if not descriptors:
                raise BadRequest("The machine's program sent no stream.")
            os.set_inheritable(descriptors[0], False)
            return socket.socket(fileno=descriptors.pop())
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _exchange(
        self, asked: bytes, within_s: float | None, receive: Callable[[], bytes]
    ) -> dict[str, Any]:
        try:
            self.sock.settimeout(within_s)
            self.sock.sendall(asked)
            while (line := self._lines.next()) is None:
                data = receive()
                if not data:
                    raise GuestGone(f"The machine {self.name!r} has gone.")
                self._lines.feed(data)
        except OSError as error:
            why = "in time" if isinstance(error, TimeoutError) else f"({error.strerror})"
            raise GuestGone(
                f"The program of the machine {self.name!r} did not answer {why}.",
                remedy="It may be stopped or busy; its process id is in: microvm ls --json",
            ) from error
        return parse_answer(line)

    def take(self) -> socket.socket:
        """The connection itself, behind a console's answer."""
        self.sock.setblocking(False)
        return self.sock


def running_machines() -> Iterator[dict[str, Any]]:
    """What each named machine says of itself; what is left of one that was killed is passed by."""
    directory = open_directory(create=False)
    if directory is None:
        return
    with contextlib.closing(directory):
        names = machine_names(directory)
    for name in names:
        try:
            with ControlClient(name) as client:
                yield client.ask("info", LIST_WITHIN_S)
        except ConfigError:
            continue
        except (GuestGone, BadRequest):
            yield {"name": name, "state": "silent"}
        except MicrovmError as error:
            yield {"name": name, "state": "silent", "reason": error.message}
