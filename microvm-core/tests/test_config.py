import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.config import (
    MAX_CMDLINE_BYTES,
    BootSource,
    DeviceConfig,
    DriveConfig,
    MachineConfig,
    NetConfig,
    RateLimit,
    VsockConfig,
    byte_count,
)
from microvm.errors import ConfigError


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        MachineConfig(mem_size_mib=0, vcpu_count=0, cmdline="a\nb", ready_within_s=0)
    assert [p.where for p in caught.value.problems] == [
        "mem_size_mib",
        "vcpu_count",
        "cmdline",
        "ready_within_s",
    ]


@pytest.mark.parametrize("bad", [0, 39, -1, 2**40, True, 64.0, "64", None])
def test_memory_outside_its_bounds_or_not_an_int_is_refused(bad: object) -> None:
    """Row 81."""
    with pytest.raises(ConfigError, match="mem_size_mib: must be a whole number from 40"):
        MachineConfig(mem_size_mib=bad)  # type: ignore[arg-type]


def test_the_bounds_themselves_are_good() -> None:
    assert MachineConfig(mem_size_mib=40, vcpu_count=255).vcpu_count == 255


@pytest.mark.parametrize("bad", [0, 256, True, 1.0])
def test_vcpu_count_outside_its_bounds_is_refused(bad: object) -> None:
    """Row 81."""
    with pytest.raises(ConfigError, match="vcpu_count"):
        MachineConfig(vcpu_count=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("cid", [0, 1, 2, 0xFFFF_FFFF, 2**32, -1])
def test_reserved_guest_cids_are_refused(cid: int) -> None:
    with pytest.raises(ConfigError, match="guest_cid"):
        VsockConfig(guest_cid=cid)


@pytest.mark.parametrize("words", ["a\0b", "a\nb", "é", "\x1b[31m"])
def test_a_command_line_is_one_line_of_printable_ascii(words: str) -> None:
    """Row 70."""
    with pytest.raises(ConfigError, match="cmdline"):
        BootSource(kernel="/k", cmdline=words)  # type: ignore[arg-type]


@given(st.integers(0, 2 * MAX_CMDLINE_BYTES))
def test_a_command_line_fits_the_kernels_limit(length: int) -> None:
    if length <= MAX_CMDLINE_BYTES:
        MachineConfig(cmdline="a" * length)
    else:
        with pytest.raises(ConfigError, match=str(MAX_CMDLINE_BYTES)):
            MachineConfig(cmdline="a" * length)


@pytest.mark.parametrize(
    ("where", "bad"),
    [
        ("boot", "/boot/vmlinuz"),
        ("cmdline", None),
        ("vsock", 3),
        ("devices", "vsock"),
        ("devices", ["vsock"]),
        ("provisioners", "agent"),
        ("provisioners", None),
        ("provisioners", [1]),
        ("backend", 5),
        ("backend", ""),
        ("backend_options", ["accel"]),
        ("ready_within_s", "60"),
        ("ready_within_s", float("nan")),
    ],
)
def test_a_value_of_the_wrong_type_is_a_problem_like_any_other(where: str, bad: object) -> None:
    with pytest.raises(ConfigError) as caught:
        MachineConfig(vcpu_count=0, **{where: bad})  # type: ignore[arg-type]
    assert {p.where for p in caught.value.problems} == {"vcpu_count", where}


@pytest.mark.parametrize("bad", [{"name": ""}, {"name": None}, {"name": "dice", "options": [1]}])
def test_a_device_has_a_name_and_a_mapping_of_options(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="device configuration"):
        DeviceConfig(**bad)  # type: ignore[arg-type]


def test_a_provisioner_needs_a_vsock_device() -> None:
    with pytest.raises(ConfigError, match="vsock: a provisioner reaches the guest through it"):
        MachineConfig(vsock=None)
    assert MachineConfig(vsock=None, provisioners=()).device_names() == ()


def test_a_provisioner_is_named_once() -> None:
    with pytest.raises(ConfigError, match="names 'agent' twice"):
        MachineConfig(provisioners=("agent", "agent"))


def test_a_machine_tells_which_device_plugins_it_takes() -> None:
    config = MachineConfig(
        drives=[DriveConfig(path="a.img"), DriveConfig(path="b.img")],  # type: ignore[arg-type]
        nets=[NetConfig(backend="null")],  # type: ignore[arg-type]
        devices=[DeviceConfig(name="dice"), DeviceConfig(name="net")],  # type: ignore[arg-type]
    )
    assert config.device_names() == ("vsock", "blk", "net", "dice")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"queues": 0}, "queues: must be a whole number from 1 to 16"),
        ({"read_only": 1}, "read_only: must be a bool"),
        ({"serial": ""}, "serial: must be 1 to 20"),
        ({"serial": "x" * 21}, "serial: must be 1 to 20"),
        ({"serial": "caf\u00e9"}, "serial: must be 1 to 20"),
        ({"serial": "a\nb"}, "serial: must be 1 to 20"),
        ({"rate_limit": True}, "rate_limit: must be a RateLimit or None"),
        ({"rate_limit": "fast"}, "rate_limit: must be a RateLimit or None"),
        ({"rate_limit": 0}, "bytes_per_s: must be a whole number from 1"),
    ],
)
def test_a_drive_that_can_not_be_is_refused(bad: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DriveConfig(path="disk.img", **bad)  # type: ignore[arg-type]


def test_a_capture_is_of_one_card() -> None:
    def cards(*captures: str | None) -> MachineConfig:
        return MachineConfig(nets=tuple(NetConfig(capture=path) for path in captures))  # type: ignore[arg-type]

    cards(None, "a.pcap", None, "b.pcap")
    with pytest.raises(ConfigError) as caught:
        cards("a.pcap", "b.pcap", "./a.pcap")
    (problem,) = caught.value.problems
    assert problem.where == "nets[2].capture"
    assert problem.what == "is the file of nets[0]."
    assert problem.remedy == "Give each network a file of its own."


def test_only_one_drive_is_the_root() -> None:
    root = DriveConfig(path="a.img", root=True)
    with pytest.raises(ConfigError, match="2 of them are the root file system"):
        MachineConfig(drives=(root, root))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"backend": ""}, "backend: must name a net backend"),
        ({"options": [1]}, "options: must be a Mapping"),
        ({"mac": "02:00:00:00:00"}, "mac: must be six bytes"),
        ({"mac": "01:00:5e:00:00:01"}, "mac: must be six bytes"),
        ({"mac": "00:00:00:00:00:00"}, "mac: must be six bytes"),
        ({"mtu": 67}, "mtu: must be a whole number from 68 to 65535"),
        ({"queues": 17}, "queues: must be a whole number from 1 to 16"),
        ({"tx_rate_limit": "1T"}, "tx_rate_limit: must be a RateLimit or None"),
    ],
)
def test_a_net_that_can_not_be_is_refused(bad: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        NetConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "bytes_per_s"),
    [(1000, 1000), ("1000", 1000), ("64K", 65536), ("10M", 10 << 20), ("1G", 1 << 30)],
)
def test_a_rate_limit_may_be_a_number_of_bytes_a_second(value: object, bytes_per_s: int) -> None:
    limit = RateLimit(bytes_per_s=bytes_per_s)
    assert DriveConfig(path="disk.img", rate_limit=value).rate_limit == limit
    net = NetConfig(rx_rate_limit=value, tx_rate_limit=value)
    assert (net.rx_rate_limit, net.tx_rate_limit) == (limit, limit)


@pytest.mark.parametrize(
    "text", ["", "K", "1k", "-1", "1.5M", "1MB", " 1", "1\n", "\u0661", "9" * 17]
)
def test_other_texts_are_no_number_of_bytes(text: str) -> None:
    assert byte_count(text) is None


@pytest.mark.parametrize("bad", [{"bytes_per_s": 0}, {"ops_per_s": True}, {"burst_ops": 5}])
def test_a_rate_limit_bounds_something(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        RateLimit(**bad)


def test_options_can_not_be_changed_from_outside() -> None:
    options = {"seed": 1}
    device = DeviceConfig(name="dice", options=options)
    options["seed"] = 2
    assert device.options["seed"] == 1
    with pytest.raises(TypeError):
        device.options["seed"] = 3  # type: ignore[index]
