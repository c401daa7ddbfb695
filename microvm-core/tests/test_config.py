import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.config import (
    MAX_CMDLINE_BYTES,
    BootSource,
    DeviceConfig,
    MachineConfig,
    VsockConfig,
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
    with pytest.raises(ConfigError, match="mem_size_mib: must be a whole number from 40"):
        MachineConfig(mem_size_mib=bad)  # type: ignore[arg-type]


def test_the_bounds_themselves_are_good() -> None:
    assert MachineConfig(mem_size_mib=40, vcpu_count=255).vcpu_count == 255


@pytest.mark.parametrize("bad", [0, 256, True, 1.0])
def test_vcpu_count_outside_its_bounds_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match="vcpu_count"):
        MachineConfig(vcpu_count=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("cid", [0, 1, 2, 0xFFFF_FFFF, 2**32, -1])
def test_reserved_guest_cids_are_refused(cid: int) -> None:
    with pytest.raises(ConfigError, match="guest_cid"):
        VsockConfig(guest_cid=cid)


@pytest.mark.parametrize("words", ["a\0b", "a\nb", "é", "\x1b[31m"])
def test_a_command_line_is_one_line_of_printable_ascii(words: str) -> None:
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
    assert MachineConfig(vsock=None, provisioners=()).all_devices() == ()


def test_a_provisioner_is_named_once() -> None:
    with pytest.raises(ConfigError, match="names 'agent' twice"):
        MachineConfig(provisioners=("agent", "agent"))


def test_the_vsock_device_comes_first_and_as_a_plugin_takes_it() -> None:
    config = MachineConfig(devices=[DeviceConfig(name="dice")])  # type: ignore[arg-type]
    vsock, dice = config.all_devices()
    assert (vsock.name, vsock.options["guest_cid"], dice.name) == ("vsock", 3, "dice")


def test_options_can_not_be_changed_from_outside() -> None:
    options = {"seed": 1}
    device = DeviceConfig(name="dice", options=options)
    options["seed"] = 2
    assert device.options["seed"] == 1
    with pytest.raises(TypeError):
        device.options["seed"] = 3  # type: ignore[index]
