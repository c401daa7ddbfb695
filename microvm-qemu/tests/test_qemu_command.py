"""QEMU's command line, made without a QEMU."""

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from microvm.abc import MachinePlan
from microvm.config import MAX_CMDLINE_BYTES, MachineConfig
from microvm.virtio.ids import DeviceType
from microvm_qemu._command import (
    DEVICE_WORD_BYTES,
    MAX_DEVICES,
    Wiring,
    kernel_words,
    problems_with,
    qemu_arguments,
)
from microvm_qemu._devices import FRONT_ENDS, device_argument
from microvm_qemu._facts import QemuFacts
from microvm_qemu._options import QemuOptions

from .idle_devices import Idle

PlanOf = Callable[..., MachinePlan]

FACTS = QemuFacts(
    version=(7, 2, 0),
    has_machine=True,
    has_memfd=True,
    sandbox=True,
    devices=frozenset(FRONT_ENDS.values()),
    accelerators=frozenset({"tcg"}),
)
TCG = QemuOptions()
KVM = QemuOptions(accel="kvm")


def arguments(plan: MachinePlan, options: QemuOptions = TCG, facts: QemuFacts = FACTS) -> list[str]:
    fds = tuple(range(20, 20 + len(plan.devices)))
    return qemu_arguments(plan, options, facts, Wiring(monitor=10, console=11, devices=fds))


def value_of(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_memory_is_shared_and_of_the_size_asked_for(plan_of: PlanOf) -> None:
    words = arguments(plan_of(Path("/k"), mem_size_mib=192))
    assert value_of(words, "-m") == "192M"
    assert value_of(words, "-object") == "memory-backend-memfd,id=ram0,size=192M,share=on"


def test_the_guest_runs_when_the_monitor_says_so_and_never_reboots(plan_of: PlanOf) -> None:
    words = arguments(plan_of(Path("/k")))
    assert "-S" in words
    assert "-no-reboot" in words


def test_nothing_has_a_name_in_the_file_system(plan_of: PlanOf) -> None:
    words = arguments(plan_of(Path("/k"), [Idle(DeviceType.VSOCK)]))
    assert not [word for word in words if "path=" in word or "server=" in word]


@pytest.mark.parametrize(("options", "cpu"), [(TCG, "max"), (KVM, "host")])
def test_the_accelerator_asked_for_is_the_only_one_given(
    plan_of: PlanOf, options: QemuOptions, cpu: str
) -> None:
    words = arguments(plan_of(Path("/k")), options)
    assert words.count("-accel") == 1
    assert value_of(words, "-accel") == options.accel
    assert value_of(words, "-cpu") == cpu


def test_without_seccomp_there_is_no_sandbox(plan_of: PlanOf) -> None:
    assert "-sandbox" in arguments(plan_of(Path("/k")))
    without = arguments(plan_of(Path("/k")), facts=attrs.evolve(FACTS, sandbox=False))
    assert "-sandbox" not in without


@pytest.mark.parametrize("name", ["a,b=c", "-kernel", "x y", "ü\udcff", "%s$(id)", "a\nb"])
def test_a_hostile_path_is_one_argument_and_unchanged(plan_of: PlanOf, name: str) -> None:
    plan = attrs.evolve(plan_of(Path("/tmp") / name), initrd=Path("/tmp") / f"{name}.cpio")
    words = arguments(plan)
    assert value_of(words, "-kernel") == f"/tmp/{name}"
    assert value_of(words, "-initrd") == f"/tmp/{name}.cpio"


def test_a_relative_path_is_made_absolute(plan_of: PlanOf) -> None:
    assert value_of(arguments(plan_of(Path("-k"))), "-kernel") == str(Path("-k").absolute())


def test_the_kernels_words_are_one_argument(plan_of: PlanOf) -> None:
    words = arguments(plan_of(Path("/k"), cmdline="a=b,c quiet -kernel"))
    assert value_of(words, "-append") == "a=b,c quiet -kernel"


def test_extra_arguments_come_last(plan_of: PlanOf) -> None:
    words = arguments(plan_of(Path("/k")), QemuOptions(extra_args=("-d", "int")))
    assert words[-2:] == ["-d", "int"]


def test_devices_keep_their_order_and_leave_the_clocks_interrupt_alone(plan_of: PlanOf) -> None:
    plan = plan_of(Path("/k"), [Idle(DeviceType.ENTROPY)] * MAX_DEVICES)
    words = arguments(plan)
    values = [words[i + 1] for i, word in enumerate(words) if word == "-device"]
    buses = [int(value.rpartition("bus.")[2]) for value in values]
    assert buses == sorted(set(buses), reverse=True)
    assert len(buses) == MAX_DEVICES
    assert 3 not in buses
    chardevs = [w for w in words if w.startswith("socket,id=device")]
    assert chardevs[0] == "socket,id=device0,fd=20"
    assert values[0].startswith("vhost-user-rng,chardev=device0,")


def test_blk_gets_its_queues_as_properties() -> None:
    device = Idle(DeviceType.BLOCK, (128, 64))
    argument = device_argument(device, chardev="c", bus="b")
    assert argument == "vhost-user-blk,chardev=c,bus=b,num-queues=2,queue-size=64"


def test_fs_gets_its_tag_from_its_configuration_space_with_commas_doubled() -> None:
    config = b"my,tag=x".ljust(36, b"\0") + (3).to_bytes(4, "little")
    argument = device_argument(Idle(DeviceType.FS, (64,) * 4, config), chardev="c", bus="b")
    assert "tag=my,,tag=x," in argument
    assert "num-request-queues=3" in argument


class Net(Idle):
    """Two pairs of queues, and an address that the driver may change or not."""

    def __init__(self, features: int = 1 << 23) -> None:
        config = bytes.fromhex("020000000001 0100 0200 3412")
        super().__init__(DeviceType.NET, (256,) * 4 + (64,), config)
        self._features = features

    @property
    def features(self) -> int:
        return self._features


def test_net_is_two_parts_that_agree_with_its_configuration_space(plan_of: PlanOf) -> None:
    words = arguments(plan_of(Path("/k"), [Net()], vcpu_count=4))
    assert value_of(words, "-netdev") == "vhost-user,id=net-device0,chardev=device0,queues=2"
    assert value_of(words, "-device").split(",") == [
        "virtio-net-device",
        "netdev=net-device0",
        "bus=virtio-mmio-bus.7",
        "mac=02:00:00:00:00:01",
        f"host_mtu={0x1234}",
        "guest_announce=off",
        "mq=on",
    ]
    assert words.index("-netdev") < words.index("-device")


def test_a_net_has_no_more_pairs_of_queues_than_the_guest_has_cpus(plan_of: PlanOf) -> None:
    words = arguments(plan_of(Path("/k"), [Net()], vcpu_count=1))
    assert "queues" not in value_of(words, "-netdev")
    assert "mq=" not in value_of(words, "-device")


def test_an_address_that_is_fixed_is_fixed_in_qemu_too(plan_of: PlanOf) -> None:
    fixed = value_of(arguments(plan_of(Path("/k"), [Net(features=0)])), "-device")
    assert "ctrl_mac_addr=off" in fixed
    assert "ctrl_mac_addr" not in value_of(arguments(plan_of(Path("/k"), [Net()])), "-device")


# --- what can't be built ---------------------------------------------------------------------


def where_of(plan: MachinePlan, facts: QemuFacts = FACTS) -> list[str]:
    return [problem.where for problem in problems_with(plan, facts, host_mem_mib=1024)]


def test_a_plan_within_all_limits_has_no_problem(plan_of: PlanOf) -> None:
    devices = [Idle(DeviceType.VSOCK)] * MAX_DEVICES
    spare = MAX_CMDLINE_BYTES - MAX_DEVICES * DEVICE_WORD_BYTES
    plan = plan_of(Path("/k"), devices, mem_size_mib=1024, vcpu_count=255, cmdline="x" * spare)
    assert where_of(plan) == []


def test_one_more_than_each_limit_is_a_problem_and_all_are_listed(plan_of: PlanOf) -> None:
    devices = [Idle(DeviceType.VSOCK)] * (MAX_DEVICES + 1)
    spare = MAX_CMDLINE_BYTES - len(devices) * DEVICE_WORD_BYTES
    plan = plan_of(Path("/k"), devices, mem_size_mib=1025, cmdline="x" * (spare + 1))
    assert where_of(plan) == ["mem_size_mib", "devices", "cmdline"]


@pytest.mark.parametrize(("words", "where"), [("a -- b", ["cmdline"]), ("a --b c=--", [])])
def test_words_for_init_would_hide_the_devices_behind_them(
    plan_of: PlanOf, words: str, where: list[str]
) -> None:
    assert where_of(plan_of(Path("/k"), [Idle(DeviceType.VSOCK)], cmdline=words)) == where
    assert where_of(plan_of(Path("/k"), (), cmdline=words)) == []


def test_a_device_without_a_front_end_is_a_problem(plan_of: PlanOf) -> None:
    assert where_of(plan_of(Path("/k"), [Idle(DeviceType.CONSOLE)])) == ["devices"]


def test_a_front_end_that_this_qemu_lacks_is_a_problem(plan_of: PlanOf) -> None:
    facts = attrs.evolve(FACTS, devices=frozenset({"vhost-user-vsock-device"}))
    assert where_of(plan_of(Path("/k"), [Idle(DeviceType.BLOCK)]), facts) == ["devices"]


# --- the kernel's words ----------------------------------------------------------------------


def test_one_cpu_does_without_the_apic_timer_and_several_need_it() -> None:
    one = kernel_words(MachineConfig(vcpu_count=1), TCG, counter_khz=None)
    two = kernel_words(MachineConfig(vcpu_count=2), TCG, counter_khz=None)
    assert "nolapic_timer" in one
    assert "nolapic_timer" not in two


def test_the_counters_rate_is_told_when_it_is_known() -> None:
    words = kernel_words(MachineConfig(), TCG, counter_khz=2599998)
    assert "tsc_early_khz=2599998" in words
    assert not [w for w in kernel_words(MachineConfig(), TCG, counter_khz=None) if "khz" in w]


def test_what_software_emulation_needs_is_not_said_to_a_guest_on_kvm() -> None:
    words = kernel_words(MachineConfig(), KVM, counter_khz=2599998)
    assert not {"no_timer_check", "tsc=reliable", "nolapic_timer"} & set(words)
    assert "tsc_early_khz=2599998" not in words


@pytest.mark.parametrize("options", [TCG, KVM])
def test_a_panic_ends_the_machine(options: QemuOptions) -> None:
    words = kernel_words(MachineConfig(), options, counter_khz=None)
    assert {"panic=-1", "reboot=t", "console=ttyS0"} <= set(words)
