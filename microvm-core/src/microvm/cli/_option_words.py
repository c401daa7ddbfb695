"""What stands behind ``--disk``, ``--net``, ``--device`` and ``--console``, as configuration.

Pure, but for the net backends' own syntax, which is theirs to read. A value is a first word and,
behind commas, more: ``--disk root.img,ro``. A comma that belongs to a word is written twice:
``--disk a,,b.img`` is the file ``a,b.img``. Of ``--net``, the words that every card has are read
here, and all others are the backend's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from microvm.config import (
    ConsoleConfig,
    ConsoleOutput,
    DeviceConfig,
    DriveConfig,
    NetConfig,
    RateLimit,
    byte_count,
)
from microvm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from microvm.plugins import NetBackendFactory

DISK_SYNTAX: Final = (
    "PATH[,ro][,root][,writethrough][,serial=TEXT][,queues=N][,rate=BYTES][,iops=N]"
)
CARD_SYNTAX: Final = "[,mac=MAC][,mtu=N][,queues=N][,rate=BYTES]"
"""What may stand behind every backend of ``--net``."""
DEVICE_SYNTAX: Final = "NAME[,KEY=VALUE...]"
CONSOLE_SYNTAX: Final = "ring|file:PATH|stdio|pty"
NO_NET: Final = "none"

FindNetBackend = Callable[[str], "NetBackendFactory"]


def split_words(text: str) -> list[str]:
    """The words between commas; a comma written twice is one of a word's own."""
    words = [""]
    at = 0
    while at < len(text):
        if text.startswith(",,", at):
            words[-1] += ","
            at += 2
        elif text[at] == ",":
            words.append("")
            at += 1
        else:
            words[-1] += text[at]
            at += 1
    return words


def parse_disk(text: str) -> DriveConfig:
    """The drive that ``--disk`` describes.

    Raises:
        ConfigError: a word means nothing, or its value can't be used.
    """
    path, *words = split_words(text)
    if not path:
        raise ConfigError(f"--disk {text}: the path is missing.", remedy=f"Give {DISK_SYNTAX}.")
    fields: dict[str, Any] = {}
    limits: dict[str, int] = {}
    for word in words:
        name, equals, value = word.partition("=")
        match name:
            case "ro" if not equals:
                fields["read_only"] = True
            case "root" if not equals:
                fields["root"] = True
            case "writethrough" if not equals:
                fields["writeback"] = False
            case "serial" if equals:
                fields["serial"] = value
            case "queues" if equals:
                fields["queues"] = _number("--disk", name, value)
            case "rate" if equals:
                limits["bytes_per_s"] = _bytes("--disk", name, value)
            case "iops" if equals:
                limits["ops_per_s"] = _number("--disk", name, value)
            case _:
                raise ConfigError(
                    f"--disk {text}: {word!r} means nothing there.",
                    remedy=f"Give {DISK_SYNTAX}. A comma in the path is written twice.",
                )
    return DriveConfig(path=path, rate_limit=RateLimit(**limits) if limits else None, **fields)


def parse_nets(
    texts: list[str], capture: str | None, find: FindNetBackend
) -> tuple[NetConfig, ...]:
    """The network devices that ``--net`` and ``--net-capture`` describe.

    Args:
        texts: Each a backend's name, what that backend reads itself behind a colon, and what
            every card may have.
        capture: The file to write frames to.
        find: Finds a backend by name.

    Raises:
        ConfigError: they don't fit together, or a backend can't use what it was given.
        PluginError: there is no such backend, or it is broken.
    """
    if NO_NET in texts:
        if len(texts) > 1:
            raise ConfigError(f"--net {NO_NET} was given with others.", remedy="Leave it out.")
        texts = []
    if capture is not None and len(texts) != 1:
        raise ConfigError(
            f"--net-capture belongs to one --net, and there are {len(texts)}.",
            remedy="Give one --net, such as --net passt."
            if not texts
            else "Give one --net, or describe the machine in Python (NetConfig.capture).",
        )
    return tuple(_net(text, capture, find) for text in texts)


def _net(text: str, capture: str | None, find: FindNetBackend) -> NetConfig:
    card: dict[str, Any] = {}
    theirs: list[str] = []
    for word in split_words(text):
        key, equals, value = word.partition("=")
        match key:
            case "mac" if equals and theirs:
                card["mac"] = value
            case "mtu" | "queues" if equals and theirs:
                card[key] = _number("--net", key, value)
            case "rate" if equals and theirs:
                limit = RateLimit(bytes_per_s=_bytes("--net", key, value))
                card |= {"rx_rate_limit": limit, "tx_rate_limit": limit}
            case _:
                theirs.append(word)
    name, colon, first = theirs[0].partition(":")
    if not name:
        raise ConfigError(
            f"--net {text}: the backend's name is missing.",
            remedy="See which there are: microvm run --help",
        )
    factory = find(name)
    try:
        if len(theirs) > 1 and not colon:
            raise ConfigError(f"{theirs[1]!r} means nothing there.")
        options = factory.parse_cli(",".join([first, *theirs[1:]]))
    except ConfigError as error:
        raise ConfigError(
            f"--net {text}: {error.message}",
            remedy=error.remedy or f"It is written --net {factory.syntax}{CARD_SYNTAX}",
            problems=error.problems,
        ) from error
    return NetConfig(backend=name, options=options, capture=capture, **card)


def parse_device(text: str) -> DeviceConfig:
    """The device that ``--device`` describes: values are JSON's simple ones, or texts.

    Raises:
        ConfigError: a word is no ``KEY=VALUE``.
    """
    name, *words = split_words(text)
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ConfigError(
                f"--device {text}: {word!r} is no KEY=VALUE.",
                remedy=f"Give {DEVICE_SYNTAX}. A comma in a value is written twice.",
            )
        options[key] = _value(value)
    if not name:
        raise ConfigError(
            f"--device {text}: the name is missing.", remedy="See which there are: microvm plugins"
        )
    return DeviceConfig(name=name, options=options)


def _value(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, (list, dict)) else value


def parse_console(text: str) -> ConsoleConfig:
    """What ``--console`` describes.

    Raises:
        ConfigError: nothing that there is.
    """
    output, colon, path = text.partition(":")
    if output == ConsoleOutput.FILE and path:
        return ConsoleConfig(output=ConsoleOutput.FILE, path=_as_path(path))
    if output in set(ConsoleOutput) - {ConsoleOutput.FILE} and not colon:
        return ConsoleConfig(output=ConsoleOutput(output))
    raise ConfigError(
        f"--console {text}: there is no such console.", remedy=f"Give one of {CONSOLE_SYNTAX}."
    )


def _as_path(text: str) -> Path:
    from pathlib import Path

    return Path(text)


def _number(option: str, name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ConfigError(f"{option}: {name} must be a whole number, not {text!r}.")
    return int(text)


def _bytes(option: str, name: str, text: str) -> int:
    count = byte_count(text)
    if count is None:
        raise ConfigError(
            f"{option}: {name} must be a number of bytes like 65536, 64K, 10M or 1G, not {text!r}."
        )
    return count


def net_help(factories: Mapping[str, str]) -> str:
    """What ``--help`` says of the backends there are: syntax to summary."""
    parts = [f"{syntax} ({summary})" for syntax, summary in factories.items()]
    return "; ".join([*parts, f"{NO_NET} (the default)"])
