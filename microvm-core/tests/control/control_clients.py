"""Who asks at a machine's control socket."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from microvm import Machine
from microvm.control.client import ControlClient
from microvm.control.lines import Refused
from microvm.errors import GuestGone

Build = Callable[..., Machine]
NAME = "web-1"


async def ask(*verbs: str, name: str = NAME) -> list[Any]:
    """What a client in another thread is answered, or the error that it meets."""

    def client() -> list[Any]:
        answers: list[Any] = []
        with ControlClient(name) as connection:
            for verb in verbs:
                try:
                    answers.append(connection.ask(verb))
                except (Refused, GuestGone) as error:
                    answers.append(error)
        return answers

    with trio.fail_after(60):
        return await trio.to_thread.run_sync(client)


async def connected(place: Path) -> trio.SocketStream:
    return await trio.open_unix_socket(place / f"{NAME}.sock")


async def answer_line(stream: trio.SocketStream) -> dict[str, Any]:
    got = b""
    while not got.endswith(b"\n"):
        data = await stream.receive_some(1)
        assert data, got
        got += data
    return json.loads(got)
