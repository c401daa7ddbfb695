"""The options of the ``console`` device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import attrs

from microvm.config import ConfigProblem
from microvm_devices.options import refuse

MAX_PORTS: Final = 31
"""Named ones. Linux has room for more; each takes two queues of the device."""
MAX_NAME_BYTES: Final = 64
MAX_SIDE: Final = 0xFFFF
"""Of a terminal; `cols` and `rows` are of 16 bits (5.3.4)."""


def _names(value: Any) -> Any:
    """A text is a command line's list: ``agent:log``."""
    if isinstance(value, str):
        return tuple(value.split(":"))
    return tuple(value) if isinstance(value, Iterable) else value


def _size(value: Any) -> Any:
    """A text is a command line's size: ``80x25``."""
    if isinstance(value, str):
        sides = value.split("x")
        return tuple(map(int, sides)) if all(map(str.isdecimal, sides)) else value
    return tuple(value) if isinstance(value, Iterable) else value


def _is_name(value: object) -> bool:
    # A guest makes a file name of it: /dev/virtio-ports/<name>.
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_NAME_BYTES
        and value.isascii()
        and value.isprintable()
        and "/" not in value
        and value not in (".", "..")
    )


def is_size(value: object) -> bool:
    """Whether it is columns and rows."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(
            isinstance(side, int) and not isinstance(side, bool) and 0 < side <= MAX_SIDE
            for side in value
        )
    )


@attrs.frozen(kw_only=True)
class ConsoleConfig:
    """The ports beside the terminal, and the terminal's size."""

    ports: tuple[str, ...] = attrs.field(default=(), converter=_names)
    """Names, or one text with colons between them. Where a guest runs udev, a port is
    ``/dev/virtio-ports/<name>``; in every Linux its name is in
    ``/sys/class/virtio-ports/vport*/name``."""
    size: tuple[int, int] | None = attrs.field(default=None, converter=_size)
    """Columns and rows, or a text like ``80x25``; None: the guest is not told."""

    def __attrs_post_init__(self) -> None:
        problems: list[ConfigProblem] = []
        ports: object = self.ports
        if not isinstance(ports, tuple) or not all(map(_is_name, ports)):
            problems.append(
                ConfigProblem(
                    "ports",
                    f"must be a list of names, not {self.ports!r}.",
                    f"A name is 1 to {MAX_NAME_BYTES} printable ASCII characters without a slash.",
                )
            )
        else:
            if len(self.ports) > MAX_PORTS:
                problems.append(
                    ConfigProblem("ports", f"are {len(self.ports)}; at most {MAX_PORTS} fit.")
                )
            problems.extend(
                ConfigProblem("ports", f"names {name!r} twice.")
                for name in sorted({name for name in self.ports if self.ports.count(name) > 1})
            )
        if self.size is not None and not is_size(self.size):
            problems.append(
                ConfigProblem(
                    "size", f"must be columns and rows, like (80, 25), not {self.size!r}."
                )
            )
        refuse("console", problems)
