"""What a machine is made of: frozen values, checked when they are made.

Sizes carry their unit in the name. A value that exists is valid by itself; what only a backend,
a plugin or the file system can tell (is there such a backend, does that file hold a kernel) is
checked before boot and reported as `ConfigProblem`s, all at once.

Long, since all that a user may write of a machine is read side by side; each class is short.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs

from microvm.errors import ConfigError

MIN_MEM_SIZE_MIB = 40
"""Our own image boots from 33 MiB on, and leaves a program 20 MiB of these 40. At 32 its kernel
finds the initramfs damaged and comes to nothing, until `ready_within_s` is over."""
MAX_MEM_SIZE_MIB = 1 << 20
MAX_VCPU_COUNT = 255
"""The xAPIC's 8-bit ids; what a backend allows may be less."""
MIN_GUEST_CID = 3
"""virtio 1.2, 5.10.4: 0 and 1 are reserved, 2 is the host's."""
MAX_GUEST_CID = 0xFFFF_FFFE
MAX_DRIVE_SERIAL_BYTES = 20
"""virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID."""
MAX_QUEUE_PAIRS = 16
"""Of one device: more than that, and its interrupts cost more than they bring."""
MIN_MTU, MAX_MTU = 68, 65535
"""virtio 1.2, 5.1.4.1: what a device may offer."""
MAX_CMDLINE_BYTES = 2047
"""COMMAND_LINE_SIZE on x86_64 is 2048 including the NUL byte."""
MAX_NAME_CHARACTERS = 48
_MAX_RATE = 1 << 50
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARACTERS - 1}}}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_BYTE_COUNT = re.compile(r"([0-9]{1,16})([KMG]?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Isolation(enum.StrEnum):
    """Where a machine's devices and its virtual CPUs' exits are served."""

    INLINE = "inline"
    """In the process that uses the machine, on its trio thread."""
    PROCESS = "process"
    """In a worker process of the machine's own."""


@attrs.frozen
class ConfigProblem:
    """One thing wrong with a configuration: where, what, and what to do."""

    where: str
    """The path of field names, e.g. ``boot.kernel``."""
    what: str
    remedy: str | None = None

    def __str__(self) -> str:
        tail = f" {self.remedy}" if self.remedy else ""
        return f"{self.where}: {self.what}{tail}"


def _frozen_mapping(value: Mapping[str, Any]) -> Any:
    """What is no mapping is left as it is, for the checks to refuse."""
    given: object = value
    return MappingProxyType(dict(given)) if isinstance(given, Mapping) else given


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)


def _tuple(value: Iterable[Any]) -> Any:
    """A text is left as it is, for the checks to refuse: its letters are no list of names."""
    given: object = value
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else given


def _isolation(value: str) -> Any:
    """What names none is left as it is, for the checks to refuse."""
    given: object = value
    return Isolation(given) if isinstance(given, str) and given in set(Isolation) else given


class _Checks:
    """Collects problems, so that a constructor reports all of them in one error."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._problems: list[ConfigProblem] = []

    def require(self, holds: bool, where: str, what: str, remedy: str | None = None) -> None:
        if not holds:
            self._problems.append(ConfigProblem(where, what, remedy))

    def integer(self, value: object, where: str, low: int, high: int) -> None:
        """`bool` is an `int` to Python, and `vcpu_count=True` is a mistake."""
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        self.require(good, where, f"must be a whole number from {low} to {high}, not {value!r}.")

    def kind(self, value: object, where: str, kind: type, *, optional: bool = False) -> bool:
        """Whether the value is of that type, or None where that is allowed."""
        good = isinstance(value, kind) or (optional and value is None)
        wanted = f"a {kind.__name__}{' or None' if optional else ''}"
        self.require(good, where, f"must be {wanted}, not {value!r}.")
        return good

    def all_of(self, values: object, where: str, kind: type) -> bool:
        """Whether it is a tuple of values of that type; other collections were made one."""
        good = isinstance(values, tuple) and all(isinstance(value, kind) for value in values)
        self.require(good, where, f"must be a list of {kind.__name__}, not {values!r}.")
        return good

    def done(self) -> None:
        if self._problems:
            raise ConfigError(f"{self._what} can't be used as given:", problems=self._problems)


@attrs.frozen(kw_only=True)
class BootSource:
    """A kernel of the user's own, in place of the image a provisioner would bring."""

    kernel: Path = attrs.field(converter=Path)
    initrd: Path | None = attrs.field(default=None, converter=_path)
    cmdline: str = ""
    """Words put after those the backend and the plugins ask for; the last of a kind wins."""

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The boot source")
        check_cmdline(checks, self.cmdline, "cmdline")
        checks.done()


def check_cmdline(checks: _Checks, words: str, where: str) -> None:
    """A kernel command line is one printable ASCII line that fits COMMAND_LINE_SIZE."""
    if not checks.kind(words, where, str):
        return
    checks.require(
        words.isascii() and all(c.isprintable() for c in words),
        where,
        "must be one line of printable ASCII.",
    )
    checks.require(
        len(words) <= MAX_CMDLINE_BYTES, where, f"must be at most {MAX_CMDLINE_BYTES} bytes."
    )


@attrs.frozen(kw_only=True)
class VsockConfig:
    """The virtio-vsock device: the channel into the guest that everything else uses."""

    guest_cid: int = MIN_GUEST_CID
    uds_path: Path | None = attrs.field(default=None, converter=_path)
    """Where other processes reach guest ports: an AF_UNIX socket with the ``CONNECT <port>``
    handshake, and ``<uds_path>_<port>`` for connections that the guest begins."""

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The vsock configuration")
        checks.integer(self.guest_cid, "guest_cid", MIN_GUEST_CID, MAX_GUEST_CID)
        checks.done()


@attrs.frozen(kw_only=True)
class RateLimit:
    """How much a device may do for its guest in the long run; None is no bound."""

    bytes_per_s: int | None = None
    ops_per_s: int | None = None
    burst_bytes: int | None = None
    """What may pass at once after a time of quiet; as much as in a second, unless told."""
    burst_ops: int | None = None
    """The same in operations."""

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The rate limit")
        for field in attrs.fields(type(self)):
            value = getattr(self, field.name)
            if value is not None:
                checks.integer(value, field.name, 1, _MAX_RATE)
        for burst, rate in (("burst_bytes", "bytes_per_s"), ("burst_ops", "ops_per_s")):
            alone = getattr(self, burst) is not None and getattr(self, rate) is None
            checks.require(not alone, burst, f"means nothing without {rate}.")
        checks.done()


def byte_count(text: str) -> int | None:
    """What ``65536``, ``64K``, ``10M`` or ``1G`` is in bytes, by powers of 1024; else None."""
    match = _BYTE_COUNT.fullmatch(text)
    return None if match is None else int(match[1]) * _UNITS[match[2]]


def as_rate_limit(value: Any) -> Any:
    """A number is bytes a second, and so is a text like ``10M``: a command line's way to say it.

    A converter for a field of `attrs`. What can't be a `RateLimit` is left as it is, for the checks
    to refuse.
    """
    if isinstance(value, str):
        value = value if (count := byte_count(value)) is None else count
    if isinstance(value, int) and not isinstance(value, bool):
        return RateLimit(bytes_per_s=value)
    return value


@attrs.frozen(kw_only=True)
class DriveConfig:
    """A disk of the guest: a file or a block device of the host, byte for byte (raw)."""

    path: Path = attrs.field(converter=Path)
    read_only: bool = False
    root: bool = False
    """The guest's root file system. With the agent's image, the agent enters it and is its init;
    with a kernel of your own and no initrd, the kernel mounts it."""
    writeback: bool = True
    """Whether writes may wait for the guest's flush; if not, each is on the disk before the guest
    hears that it is done."""
    queues: int = 1
    serial: str | None = None
    """What the guest reads as the disk's serial number; at most 20 printable ASCII characters."""
    rate_limit: RateLimit | None = attrs.field(default=None, converter=as_rate_limit)
    """Also a number of bytes a second, as in every configuration that has one."""

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The drive")
        for name in ("read_only", "root", "writeback"):
            checks.kind(getattr(self, name), name, bool)
        checks.integer(self.queues, "queues", 1, MAX_QUEUE_PAIRS)
        if self.serial is not None and checks.kind(self.serial, "serial", str):
            good = self.serial.isascii() and self.serial.isprintable()
            checks.require(
                good and 0 < len(self.serial) <= MAX_DRIVE_SERIAL_BYTES,
                "serial",
                f"must be 1 to {MAX_DRIVE_SERIAL_BYTES} printable ASCII characters.",
            )
        checks.kind(self.rate_limit, "rate_limit", RateLimit, optional=True)
        checks.done()


@attrs.frozen(kw_only=True)
class NetConfig:
    """A network device of the guest, and what carries its frames on the host."""

    backend: str = "passt"
    """A net backend by the name of its plugin."""
    options: Mapping[str, Any] = attrs.field(factory=dict, converter=_frozen_mapping, hash=False)
    """What that plugin reads."""
    mac: str | None = None
    """Like ``02:00:00:00:00:01``; None lets the device choose one of its own at each start."""
    mtu: int | None = None
    queues: int = 1
    """Pairs of a receive and a transmit queue."""
    capture: Path | None = attrs.field(default=None, converter=_path)
    """A file that every frame is written to, for Wireshark and its like (pcap). Each network of
    each machine has its own."""
    rx_rate_limit: RateLimit | None = attrs.field(default=None, converter=as_rate_limit)
    """Of what the guest receives."""
    tx_rate_limit: RateLimit | None = attrs.field(default=None, converter=as_rate_limit)
    """Of what the guest sends."""

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The network device")
        backend: object = self.backend
        named = isinstance(backend, str) and backend != ""
        checks.require(named, "backend", f"must name a net backend, not be {self.backend!r}.")
        checks.kind(self.options, "options", Mapping)
        if self.mac is not None and checks.kind(self.mac, "mac", str):
            checks.require(
                is_station_mac(self.mac),
                "mac",
                "must be six bytes like 02:00:00:00:00:01, not a group's and not all zeros.",
            )
        if self.mtu is not None:
            checks.integer(self.mtu, "mtu", MIN_MTU, MAX_MTU)
        checks.integer(self.queues, "queues", 1, MAX_QUEUE_PAIRS)
        checks.kind(self.rx_rate_limit, "rx_rate_limit", RateLimit, optional=True)
        checks.kind(self.tx_rate_limit, "tx_rate_limit", RateLimit, optional=True)
        checks.done()


def is_station_mac(text: str) -> bool:
    """Whether it is the address of one station (IEEE 802, 8.2: the first byte's lowest bit)."""
    if not _MAC.fullmatch(text):
        return False
    address = bytes.fromhex(text.replace(":", ""))
    return not address[0] & 1 and any(address)


class ConsoleOutput(enum.StrEnum):
    """Where a guest's console leads, beside the last lines that are always kept."""

    RING = "ring"
    """Nowhere."""
    FILE = "file"
    """Into a file, byte for byte."""
    STDIO = "stdio"
    """To this process's terminal, both ways."""
    PTY = "pty"
    """To a terminal of its own, both ways; `Machine.console_path` says where."""


class ConsoleDevice(enum.StrEnum):
    """What the guest's console is, to the guest."""

    SERIAL = "serial"
    """A serial port, ``/dev/ttyS0``: from the kernel's first word on, one or two exits a byte."""
    VIRTIO = "virtio"
    """The virtio console, ``/dev/hvc0``: from its driver on, three exits a line."""


def _console_output(value: str) -> Any:
    """What names none is left as it is, for the checks to refuse."""
    given: object = value
    known = isinstance(given, str) and given in set(ConsoleOutput)
    return ConsoleOutput(value) if known else given


def _console_device(value: str) -> Any:
    """What names none is left as it is, for the checks to refuse."""
    given: object = value
    known = isinstance(given, str) and given in set(ConsoleDevice)
    return ConsoleDevice(value) if known else given


@attrs.frozen(kw_only=True)
class ConsoleConfig:
    """The guest's console, and where what it prints goes."""

    output: ConsoleOutput = attrs.field(default=ConsoleOutput.RING, converter=_console_output)
    """Also by its value: ``"ring"``, ``"file"``, ``"stdio"`` or ``"pty"``."""
    path: Path | None = attrs.field(default=None, converter=_path)
    """The file's; it is emptied first, and your own user's alone from then on (0600). One that
    another machine writes is refused."""
    max_file_bytes: int = 64 << 20
    """What the file may become; a line in it says so when it is full."""
    device: ConsoleDevice = attrs.field(default=ConsoleDevice.SERIAL, converter=_console_device)
    """Also by its value, ``"serial"`` or ``"virtio"``. The latter is the ``console`` device, with
    the options that it has in `MachineConfig.devices`, if it is there."""

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The console")
        checks.require(
            isinstance(self.output, ConsoleOutput),
            "output",
            f"must be one of {', '.join(ConsoleOutput)}, not {self.output!r}.",
        )
        is_file = self.output is ConsoleOutput.FILE
        checks.require(
            is_file == (self.path is not None),
            "path",
            "is missing." if is_file else 'means nothing without output="file".',
        )
        checks.require(
            isinstance(self.device, ConsoleDevice),
            "device",
            f"must be one of {', '.join(ConsoleDevice)}, not {self.device!r}.",
        )
        checks.integer(self.max_file_bytes, "max_file_bytes", 1, _MAX_RATE)
        checks.done()


@attrs.frozen(kw_only=True)
class DeviceConfig:
    """A device by the name of its plugin, with the options which that plugin reads."""

    name: str
    options: Mapping[str, Any] = attrs.field(factory=dict, converter=_frozen_mapping, hash=False)

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The device configuration")
        name: object = self.name
        checks.require(
            isinstance(name, str) and name != "",
            "name",
            f"must name a device plugin, not be {name!r}.",
        )
        checks.kind(self.options, "options", Mapping)
        checks.done()


def is_machine_name(text: str) -> bool:
    """Whether a machine may be called so: what is safe in a file's name and on a terminal."""
    return bool(_NAME.fullmatch(text))


@attrs.frozen(kw_only=True)
class MachineConfig:
    """A machine, described."""

    mem_size_mib: int = 128
    vcpu_count: int = 1
    boot: BootSource | None = None
    """None: the image that the provisioners bring."""
    cmdline: str = ""
    """Kernel command line words, put last."""
    console: ConsoleConfig = attrs.field(factory=ConsoleConfig)
    name: str | None = None
    """What other programs of yours find the running machine by (`microvm ls`); None for one that
    is nobody else's business."""
    vsock: VsockConfig | None = attrs.field(factory=VsockConfig)
    drives: tuple[DriveConfig, ...] = attrs.field(default=(), converter=_tuple)
    """The guest's ``/dev/vda``, ``/dev/vdb`` and so on, in this order."""
    nets: tuple[NetConfig, ...] = attrs.field(default=(), converter=_tuple)
    """The guest's ``eth0``, ``eth1`` and so on, in this order."""
    devices: tuple[DeviceConfig, ...] = attrs.field(default=(), converter=_tuple)
    """What else it has."""
    provisioners: tuple[str, ...] = attrs.field(default=("agent",), converter=_tuple)
    """Names of provisioner plugins. Empty: the guest is on its own, and `run` is not to be had."""
    backend: str | None = None
    """A backend by name, or None to let the best usable one be chosen. A backend given by name
    is never replaced by another."""
    backend_options: Mapping[str, Any] = attrs.field(
        factory=dict, converter=_frozen_mapping, hash=False
    )
    isolation: Isolation = attrs.field(default=Isolation.INLINE, converter=_isolation)
    """Also by its value, ``"inline"`` or ``"process"``."""
    ready_within_s: float = 60.0
    """Bound on the time from start to the agent's hello; past it `GuestNotReady` is raised."""

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The machine")
        checks.integer(self.mem_size_mib, "mem_size_mib", MIN_MEM_SIZE_MIB, MAX_MEM_SIZE_MIB)
        checks.integer(self.vcpu_count, "vcpu_count", 1, MAX_VCPU_COUNT)
        checks.kind(self.boot, "boot", BootSource, optional=True)
        check_cmdline(checks, self.cmdline, "cmdline")
        checks.kind(self.console, "console", ConsoleConfig)
        if self.name is not None and checks.kind(self.name, "name", str):
            checks.require(
                is_machine_name(self.name),
                "name",
                f"must be 1 to {MAX_NAME_CHARACTERS} letters, digits, '.', '_' and '-', and begin "
                f"with a letter or digit, not {self.name!r}.",
            )
        checks.kind(self.vsock, "vsock", VsockConfig, optional=True)
        if checks.all_of(self.drives, "drives", DriveConfig):
            roots = sum(drive.root for drive in self.drives)
            checks.require(roots <= 1, "drives", f"{roots} of them are the root file system.")
        if checks.all_of(self.nets, "nets", NetConfig):
            self._check_captures(checks)
        checks.all_of(self.devices, "devices", DeviceConfig)
        if checks.all_of(self.provisioners, "provisioners", str):
            for name in sorted({n for n in self.provisioners if self.provisioners.count(n) > 1}):
                checks.require(False, "provisioners", f"names {name!r} twice.")
        named = isinstance(self.backend, str) and self.backend != ""
        checks.require(self.backend is None or named, "backend", "must be a name or None.")
        checks.kind(self.backend_options, "backend_options", Mapping)
        checks.require(
            isinstance(self.isolation, Isolation),
            "isolation",
            f"must be one of {', '.join(Isolation)}, not {self.isolation!r}.",
        )
        ready: object = self.ready_within_s
        checks.require(
            isinstance(ready, (int, float)) and ready > 0,
            "ready_within_s",
            f"must be a positive number of seconds, not {ready!r}.",
        )
        checks.require(
            not (self.provisioners and self.vsock is None),
            "vsock",
            "a provisioner reaches the guest through it.",
            "Leave it on, or give provisioners=().",
        )
        checks.done()

    def _check_captures(self, checks: _Checks) -> None:
        """Two cards that write to one file would leave neither's frames whole."""
        first: dict[Path, int] = {}
        for index, net in enumerate(self.nets):
            if net.capture is not None:
                earlier = first.setdefault(net.capture, index)
                checks.require(
                    earlier == index,
                    f"nets[{index}].capture",
                    f"is the file of nets[{earlier}].",
                    "Give each network a file of its own.",
                )

    def device_names(self) -> tuple[str, ...]:
        """The device plugins that the machine takes, each once."""
        names = {
            "vsock": self.vsock is not None,
            "blk": bool(self.drives),
            "net": bool(self.nets),
            **{device.name: True for device in self.devices},
        }
        return tuple(name for name, wanted in names.items() if wanted)
