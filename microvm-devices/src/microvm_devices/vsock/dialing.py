"""`Dialing`: the wait for the guest's answer to a REQUEST."""

from __future__ import annotations

import enum

import trio


class Answer(enum.Enum):
    """How the wait ended."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    RESET = "reset"
    """The driver reset the device, or the device is gone: nobody will answer."""


class Dialing:
    """One host-side program that waits for a guest port to answer.

    Args:
        greet: Whether the host's socket is told ``OK <host port>`` before anything else.
    """

    __slots__ = ("_answered", "answer", "greet")

    def __init__(self, *, greet: bool = False) -> None:
        self.greet = greet
        self.answer: Answer | None = None
        self._answered = trio.Event()

    def resolve(self, answer: Answer) -> None:
        """Wake whoever waits. Only the first answer counts."""
        if self.answer is None:
            self.answer = answer
            self._answered.set()

    async def wait(self) -> Answer:
        """The guest's answer."""
        await self._answered.wait()
        assert self.answer is not None
        return self.answer
