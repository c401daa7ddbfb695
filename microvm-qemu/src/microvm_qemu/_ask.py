"""Running programs for what they print, several at once, within bounds of time and memory.

Blocking, and for moments only: a probe has no event loop to wait on.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

ANSWER_WITHIN_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 1 << 20
"""A full QEMU's ``-device help`` is 40 KiB."""


@attrs.frozen
class Answer:
    """What a program printed, both streams as one, and how it ended."""

    text: str
    returncode: int
    """Negative for a signal, which may be ours."""
    complete: bool
    """False if it was killed for saying too much or too late."""


def ask(questions: Mapping[str, Sequence[str]]) -> dict[str, Answer | OSError]:
    """Run each command line to its end, all at the same time.

    Returns, under the questions' names, the answers, or the error for a program that could not
    be started. Nothing of them runs any more then.
    """
    answers: dict[str, Answer | OSError] = {}
    asked: dict[str, _Asked] = {}
    with selectors.DefaultSelector() as selector:
        try:
            for name, argv in questions.items():
                try:
                    asked[name] = _Asked(argv)
                except OSError as error:
                    answers[name] = error
                else:
                    selector.register(asked[name].fd, selectors.EVENT_READ, asked[name])
            deadline = time.monotonic() + ANSWER_WITHIN_S
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.data.read():
                        selector.unregister(key.fd)
        finally:
            answers |= {name: one.end() for name, one in asked.items()}
    return answers


class _Asked:
    """One program under way."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, to be killed as one
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._text = bytearray()
        self._complete = False

    @property
    def fd(self) -> int:
        return self._output.fileno()

    def read(self) -> bool:
        """Take what is there; True if that was all, or too much."""
        data = os.read(self.fd, 65536)
        self._text += data
        self._complete = not data
        return not data or len(self._text) > MAX_ANSWER_BYTES

    def end(self) -> Answer:
        """Kill what still runs, wait for it, and say what was heard."""
        self._output.close()
        if self._complete:
            try:
                # It closed its output: this is the moment that it takes to exit.
                self._process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                self._complete = False
        if not self._complete:
            # Not waited for yet, so the number is still its own, and its group's.
            os.killpg(self._process.pid, signal.SIGKILL)
        return Answer(self._text.decode("utf-8", "replace"), self._process.wait(), self._complete)
