"""What provisioners need is held against what is known of image, kernel and backend."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from microvm import BootSource, ConfigError, DriveConfig, MachineConfig
from microvm._assembly import Assembly, assemble
from microvm.abc import (
    Capability,
    GuestChannels,
    ImageFacts,
    Provisioner,
    ProvisionerNeeds,
    VirtioDevice,
)
from microvm.config import ConfigProblem
from microvm.errors import ImageError
from microvm.plugins import DeviceFactory, ProvisionerFactory
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.platform import ScriptedBackend
from microvm.testing.plugins import plugin_manager
from microvm.timeline import BootTimeline

KERNEL, INITRD, DISK = "kernel", "initrd", "disk"


@attrs.define(kw_only=True)
class Needy(Provisioner):
    """Needs what a test says, and knows images by their files' names."""

    need: ProvisionerNeeds = attrs.field(factory=ProvisionerNeeds)
    facts: Mapping[str, ImageFacts] = attrs.field(factory=dict)
    brings: Sequence[DriveConfig] | ImageError = ()
    asked: list[str] = attrs.field(factory=list)

    def needs(self, config: MachineConfig) -> ProvisionerNeeds:
        return self.need

    def image_facts(self, path: Path) -> ImageFacts | None:
        self.asked.append(path.name)
        return self.facts.get(path.name)

    def drives(self, config: MachineConfig) -> Sequence[DriveConfig]:
        if isinstance(self.brings, ImageError):
            raise self.brings
        return self.brings

    def attach(self, channels: GuestChannels) -> Any:
        raise AssertionError


class Blank(VirtioDevice):
    """A device that is never run."""

    device_id = 2
    queue_max_sizes = (16,)

    async def run(self, activation: Any) -> None:
        raise AssertionError


@pytest.fixture
def boot(tmp_path: Path) -> BootSource:
    initrd = tmp_path / INITRD
    initrd.write_bytes(b"070701")
    return BootSource(kernel=tiny_kernel(tmp_path / KERNEL), initrd=initrd)


def assembled(boot: BootSource, drives: Sequence[DriveConfig] = (), **given: Needy) -> Assembly:
    backend = ScriptedBackend(capabilities=frozenset(Capability) - {Capability.PAUSE})
    disk = DeviceFactory(name="blk", summary="a disk", virtio_id=2, create=lambda options: Blank())
    vsock = attrs.evolve(disk, name="vsock", virtio_id=19)
    manager = plugin_manager(
        backend.factory(),
        disk,
        vsock,
        *(
            ProvisionerFactory(name=name, summary="for tests", create=lambda made=made: made)
            for name, made in given.items()
        ),
    )
    config = MachineConfig(boot=boot, provisioners=tuple(given), drives=tuple(drives))
    return assemble(config, manager, BootTimeline())


def problems(*args: Any, **given: Needy) -> list[ConfigProblem]:
    try:
        assembled(*args, **given)
    except ConfigError as error:
        return list(error.problems)
    return []


def root(name: str = DISK) -> DriveConfig:
    return DriveConfig(path=name, root=True, read_only=True)


def test_by_default_nothing_is_needed_and_no_image_is_looked_at(boot: BootSource) -> None:
    needy = Needy()
    assembled(boot, [root()], needy=needy)
    assert needy.asked == []


def test_all_that_is_missing_is_told_at_once_with_its_place_and_what_to_do(
    boot: BootSource,
) -> None:
    needy = Needy(
        need=ProvisionerNeeds(
            provisioners=("runner",),
            packages=("openvpn", "iproute2", "dash"),
            files=("/etc/vpn", "/bin/sh"),
            kernel_features=("TUN", "INET"),
            capabilities=(Capability.PAUSE, Capability.OWN_KERNEL),
        ),
        facts={
            KERNEL: ImageFacts(kernel_features=("INET", "SMP")),
            DISK: ImageFacts(packages=("dash",), files=("/bin/sh",)),
        },
    )
    told = problems(boot, [DriveConfig(path="data"), root()], needy=needy)
    assert told == [
        ConfigProblem(
            "provisioners", "'needy' needs 'runner', which is not among them.", "Add 'runner'."
        ),
        ConfigProblem(
            "backend",
            "'needy' needs the capability 'pause'; 'scripted' lacks it.",
            "Take another backend, or leave 'needy' out of the provisioners.",
        ),
        ConfigProblem(
            "boot.kernel",
            f"'needy' needs TUN built into the kernel; {boot.kernel} is without.",
            "Give boot= another kernel.",
        ),
        ConfigProblem(
            "drives[1]",
            "'needy' needs the packages iproute2, openvpn; disk is without.",
            "Start from a disk with them: microvm image build --packages dash,iproute2,openvpn",
        ),
        ConfigProblem(
            "drives[1]",
            "'needy' needs the files /etc/vpn; disk is without.",
            "Start from a disk that has them (drives, root=True).",
        ),
    ]


def test_what_is_there_is_no_problem(boot: BootSource) -> None:
    needy = Needy(
        need=ProvisionerNeeds(
            provisioners=("other",),
            packages=("busybox-static | busybox", "dash"),
            files=("/bin/sh",),
            kernel_features=("TUN",),
            capabilities=(Capability.CONSOLE,),
        ),
        facts={
            KERNEL: ImageFacts(kernel_features=("TUN",)),
            DISK: ImageFacts(packages=("busybox", "dash"), files=("/bin/sh",)),
        },
    )
    assert problems(boot, [root()], needy=needy, other=Needy()) == []


def test_of_alternatives_the_first_is_what_the_command_names(boot: BootSource) -> None:
    needy = Needy(
        need=ProvisionerNeeds(packages=("busybox-static | busybox",)),
        facts={DISK: ImageFacts(packages=())},
    )
    (problem,) = problems(boot, [root()], needy=needy)
    assert "needs the packages busybox-static | busybox;" in problem.what
    assert problem.remedy is not None
    assert problem.remedy.endswith("--packages busybox-static")


@pytest.mark.parametrize(
    "need",
    [
        ProvisionerNeeds(packages=("x",), remedy="Say the word."),
        ProvisionerNeeds(files=("/x",), remedy="Say the word."),
        ProvisionerNeeds(kernel_features=("X",), remedy="Say the word."),
    ],
)
def test_the_provisioners_own_remedy_is_told(boot: BootSource, need: ProvisionerNeeds) -> None:
    nothing = ImageFacts(packages=(), files=(), kernel_features=())
    needy = Needy(need=need, facts={KERNEL: nothing, DISK: nothing})
    (problem,) = problems(boot, [root()], needy=needy)
    assert problem.remedy == "Say the word."


MUCH = ProvisionerNeeds(packages=("x",), files=("/x",), kernel_features=("X",))


@pytest.mark.parametrize("facts", [{}, {KERNEL: ImageFacts(), DISK: ImageFacts()}])
def test_what_is_not_known_is_not_guessed(
    boot: BootSource, facts: Mapping[str, ImageFacts]
) -> None:
    needy = Needy(need=MUCH, facts=facts)
    assert problems(boot, [root()], needy=needy) == []
    assert needy.asked == [KERNEL, DISK]


def test_without_a_root_drive_the_initrd_is_what_programs_come_from(boot: BootSource) -> None:
    needy = Needy(need=ProvisionerNeeds(files=("/x",)), facts={INITRD: ImageFacts(files=())})
    (problem,) = problems(boot, [DriveConfig(path=DISK)], needy=needy)
    assert problem.where == "boot.initrd"
    assert needy.asked == [INITRD]
    assert problems(attrs.evolve(boot, initrd=None), needy=needy) == []


def test_a_disk_that_a_provisioner_brings_is_looked_at_and_any_of_them_may_know_it(
    boot: BootSource,
) -> None:
    needy = Needy(need=ProvisionerNeeds(packages=("x",)), brings=(root(),))
    knows = Needy(facts={DISK: ImageFacts(packages=("x",))})
    assert problems(boot, needy=needy, knows=knows) == []
    knows.facts = {DISK: ImageFacts(packages=("y",))}
    assert [problem.where for problem in problems(boot, needy=needy, knows=knows)] == ["drives[0]"]


def test_a_disk_that_was_not_found_is_the_only_problem_with_it(boot: BootSource) -> None:
    """The initrd is not blamed for what would be on the disk; what else is known is told."""
    needy = Needy(
        need=ProvisionerNeeds(files=("/x",), provisioners=("runner",)),
        facts={INITRD: ImageFacts(files=())},
        brings=ImageError("It has not been made.", remedy="Make it."),
    )
    assert [(problem.where, problem.remedy) for problem in problems(boot, needy=needy)] == [
        ("drives", "Make it."),
        ("provisioners", "Add 'runner'."),
    ]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("packages", "openvpn"),
        ("packages", [1]),
        ("packages", [""]),
        ("files", ["bin/sh"]),
        ("kernel_features", ["CONFIG_TUN"]),
        ("capabilities", ["flight"]),
    ],
)
def test_needs_that_can_not_be_meant_are_refused_where_they_are_said(
    field: str, wrong: object
) -> None:
    fields: Any = {field: wrong}
    with pytest.raises((TypeError, ValueError)):
        ProvisionerNeeds(**fields)
