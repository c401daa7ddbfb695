"""Warnings of a command that serves: written by a thread, so that they hold up nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from microvm.cli._backlog import Weight

if TYPE_CHECKING:
    from microvm.cli._line_writer import LineWriter


class _LineHandler(logging.Handler):
    def __init__(self, lines: LineWriter, instead_of: logging.Handler) -> None:
        super().__init__(instead_of.level)
        self.setFormatter(instead_of.formatter)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.put(self.format(record), kind="log", weight=Weight.STATE)


@contextmanager
def logged_by(lines: LineWriter) -> Iterator[None]:
    """Within the block, what would be logged to standard error goes to `lines`."""
    root = logging.getLogger()
    before = [handler for handler in root.handlers if _writes_to_stderr(handler)]
    now = [_LineHandler(lines, handler) for handler in before]
    _exchange(root, before, now)
    try:
        yield
    finally:
        _exchange(root, now, before)


def _writes_to_stderr(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr


def _exchange(
    logger: logging.Logger, old: Sequence[logging.Handler], new: Sequence[logging.Handler]
) -> None:
    for handler in old:
        logger.removeHandler(handler)
    for handler in new:
        logger.addHandler(handler)
