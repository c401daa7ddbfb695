"""What the probe says, of every KVM that there may be."""

import errno
import os
import platform
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from microvm.abc import Capability, ProbeReport
from microvm.arch.x86_64.registers import Segment
from microvm.config import ConfigProblem
from microvm.errors import ConfigError, HypervisorCallError
from microvm.exits import InternalError, PioWrite, Shutdown
from microvm.testing.census import Census
from microvm.testing.hypervisor import FakeHypervisor, FakeVcpu, Script, Spin, Step
from microvm_kvm import plugin
from microvm_kvm._abi import constants, ioctls
from microvm_kvm._probe import Trials, examine, probe
from microvm_kvm._trial import BOUND_S, LONG_MODE, TrialResult, try_guests


class AnsweringCalls:
    """A kernel whose answers are a table: request to number, or to the error it fails with.

    What is not in it answers 1, but for the version.
    """

    def __init__(
        self, answers: Mapping[int, int | OSError] | None = None, *, refuses: int | None = None
    ) -> None:
        self.answers = {ioctls.KVM_GET_API_VERSION: 12, **(answers or {})}
        self.refuses = refuses
        self.lacks: set[int] = set()
        """Capabilities that it does not have."""

    def open(self, path: str) -> int:
        if self.refuses is not None:
            raise OSError(self.refuses, os.strerror(self.refuses), path)
        return os.open(os.devnull, os.O_RDWR)

    def ioctl(self, fd: int, request: int, argument: Any = 0) -> int:
        if request == ioctls.KVM_CHECK_EXTENSION and argument in self.lacks:
            return 0
        answer = self.answers.get(request, 1)
        if isinstance(answer, OSError):
            raise HypervisorCallError(ioctls.NAMES[request], answer.errno or 0)
        return answer

    def runner(self, fd: int) -> Callable[[], int]:
        raise NotImplementedError

    def error_number(self) -> int:
        raise NotImplementedError


ANSWER = PioWrite(0xE9, 1, b"\x2a")
FAULT = InternalError(1, "KVM can't emulate an instruction", {"instruction bytes": "f3 0f b8 c0"})
PIECES = len(LONG_MODE)


def playing(*steps: Step) -> FakeHypervisor:
    def script(vcpu: FakeVcpu) -> Script:
        yield from steps

    return FakeHypervisor(script)


def report_on(
    *steps: Step, calls: AnsweringCalls | None = None, hypervisor: FakeHypervisor | None = None
) -> ProbeReport:
    return examine(
        "linux",
        "x86_64",
        calls=calls or AnsweringCalls(),
        hypervisor=hypervisor or playing(*steps),
    )


# --- what keeps us from a KVM --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "machine"), [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "aarch64")]
)
def test_another_system_is_told_and_nothing_is_tried(system: str, machine: str) -> None:
    calls = AnsweringCalls(refuses=errno.EIO)
    report = examine(system, machine, calls=calls)
    assert not report.usable
    assert report.reason.endswith(f"this is {system} on {machine}.")


@pytest.mark.parametrize(
    ("number", "says", "remedy"),
    [
        (errno.ENOENT, "is not there", "kvm_intel or kvm_amd"),
        (errno.ENODEV, "has no driver", "kvm_intel or kvm_amd"),
        (errno.EACCES, "is not yours to use", "usermod -aG kvm"),
        (errno.EPERM, "is forbidden here", "--device /dev/kvm"),
        (errno.EBUSY, "is in use by another hypervisor", "VirtualBox"),
        (errno.EMFILE, "too many open files", "ulimit -n"),
        (errno.EIO, "Input/output error", "kvm_intel"),
    ],
)
def test_a_device_that_does_not_open_is_told_with_what_to_do(
    number: int, says: str, remedy: str
) -> None:
    """Row 97."""
    report = report_on(calls=AnsweringCalls(refuses=number))
    assert not report.usable
    assert report.reason.startswith("/dev/kvm ")
    assert says in report.reason
    assert remedy in (report.remedy or "")
    assert "\n" not in report.reason


def test_a_path_that_leads_nowhere_is_the_same_on_the_real_system(tmp_path: Path) -> None:
    report = examine("linux", "x86_64", device=str(tmp_path / "kvm"))
    assert not report.usable
    assert report.reason == f"{tmp_path}/kvm is not there."


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's /dev/null")
def test_a_device_that_is_no_kvm_is_told() -> None:
    report = examine("linux", "x86_64", device=os.devnull)
    assert not report.usable
    assert "/dev/null does not answer as a KVM: KVM_GET_API_VERSION" in report.reason


def test_another_version_of_the_interface_is_told() -> None:
    """Row 97."""
    report = report_on(calls=AnsweringCalls({ioctls.KVM_GET_API_VERSION: 11}))
    assert not report.usable
    assert "speaks version 11" in report.reason


def test_missing_capabilities_are_named_all_at_once() -> None:
    """Row 97."""
    calls = AnsweringCalls()
    calls.lacks = {constants.KVM_CAP_IRQFD, constants.KVM_CAP_PIT2}
    report = report_on(calls=calls)
    assert not report.usable
    assert "lacks KVM_CAP_IRQFD, KVM_CAP_PIT2." in report.reason
    assert report.remedy


def test_a_kvm_that_makes_no_vm_is_told() -> None:
    """Row 97."""
    hypervisor = FakeHypervisor()
    hypervisor.failures["create_vm"] = HypervisorCallError("KVM_CREATE_VM", errno.ENOMEM)
    report = report_on(hypervisor=hypervisor)
    assert not report.usable
    assert "makes no machine: KVM_CREATE_VM failed" in report.reason


def test_a_host_without_threads_is_told() -> None:
    hypervisor = FakeHypervisor()
    hypervisor.failures["create_vcpu"] = RuntimeError("can't start new thread")
    report = report_on(hypervisor=hypervisor)
    assert not report.usable
    assert "can't start new thread" in report.reason
    assert hypervisor.vms[0].closed


# --- what guests do ------------------------------------------------------------------------------


def test_a_kvm_that_runs_every_piece_is_usable_and_accelerated() -> None:
    report = report_on(*[ANSWER] * PIECES)
    assert report.usable
    assert report.accelerated
    assert [report.details[piece.name] for piece in LONG_MODE] == ["runs"] * PIECES
    assert "16-bit guest" not in report.details


@pytest.mark.parametrize("failing", range(PIECES))
def test_one_piece_that_fails_is_enough_to_say_no_and_it_is_named(failing: int) -> None:
    """Row 97: a KVM that only emulates."""
    steps: list[Step] = [ANSWER] * PIECES
    steps[failing] = FAULT
    report = report_on(*steps, ANSWER, ANSWER)
    name = LONG_MODE[failing].name
    assert not report.usable
    assert f"({name})" in report.reason
    assert "runs small guests only" in report.reason
    assert report.details[name] == "KVM can't emulate an instruction (f3 0f b8 c0)"
    assert report.details["16-bit guest"].startswith("runs, ")
    assert "microvm-qemu" in (report.remedy or "")


def test_a_kvm_that_runs_nothing_is_told_apart() -> None:
    report = report_on(*[FAULT] * PIECES, Shutdown())
    assert not report.usable
    assert "runs no guest" in report.reason
    assert "in 16-bit mode: triple fault" in report.reason


def test_an_interrupt_in_64_bit_mode_leads_to_its_handler_by_the_segment_that_runs() -> None:
    def look(vcpu: FakeVcpu) -> Script:
        registers, (region,) = vcpu.registers(), vcpu.vm.regions
        gdt, idt, cs = registers["gdt"], registers["idt"], registers["cs"]
        gate = bytes(region.view[idt.base + 0x20 * 16 :][:16])
        offset, selector, kind = struct.unpack_from("<HHH", gate)
        assert (selector, kind, gate[6:]) == (cs.selector, 0x8E00, bytes(10))
        assert bytes(region.view[offset:][:4]) == bytes.fromhex("b0 2a 48 cf")
        assert selector + 7 <= gdt.limit
        descriptor = int.from_bytes(region.view[gdt.base + selector :][:8], "little")
        assert Segment.from_descriptor(selector, descriptor) == cs
        yield from [ANSWER] * PIECES

    assert try_guests(FakeHypervisor(look)).runs_kernels


def test_a_result_that_is_wrong_is_a_failure() -> None:
    result = try_guests(playing(PioWrite(0xE9, 1, b"\x07"), *[ANSWER] * 5))
    assert result.pieces["popcnt"] == "wrong result (7)"
    assert not result.runs_kernels


def test_a_guest_that_hangs_is_ended_in_time() -> None:
    result = try_guests(playing(Spin()))
    assert result.pieces["popcnt"] == f"no answer within {BOUND_S:g} s"
    assert result.mips is None
    assert result.out_of_time


def test_a_trial_is_remembered_unless_it_ran_out_of_time() -> None:
    tried = []

    def try_on(device: str) -> tuple[TrialResult, float]:
        tried.append(device)
        return TrialResult(pieces={}, out_of_time=len(tried) == 1), 1.0

    trials = Trials(try_on)
    assert [trials.of("/dev/kvm")[0].out_of_time for _ in range(3)] == [True, False, False]
    assert tried == ["/dev/kvm"] * 2


def test_a_trial_that_ended_by_itself_did_not_run_out_of_time() -> None:
    assert not try_guests(playing(*[FAULT] * PIECES, Shutdown())).out_of_time


def test_the_speed_of_the_small_guest_is_measured_from_answer_to_answer() -> None:
    times = iter([10.0, 10.004])
    result = try_guests(playing(*[FAULT] * PIECES, ANSWER, ANSWER), clock=lambda: next(times))
    assert result.mips == pytest.approx(1.0)


# --- this machine's ------------------------------------------------------------------------------


@pytest.mark.kvm
def test_the_probe_of_this_machine_says_a_sentence_and_leaves_nothing() -> None:
    probe({})
    before = Census.take()
    report = examine(sys.platform, platform.machine())
    assert report.backend == "kvm"
    assert report.reason.endswith(".")
    assert report.usable or report.remedy
    assert Census.take() == before
    if report.details:
        assert float(report.details["trying took"].split()[0]) < 500
        print(report.reason, report.details)


def test_the_probe_does_not_mind_options_which_are_left_to_create() -> None:
    assert probe({"nonsense": 1}).backend == "kvm"


# --- the plugin ----------------------------------------------------------------------------------


def test_the_factory_says_what_the_backend_can_do() -> None:
    factory = plugin.microvm_register_backend()
    assert factory.name == "kvm"
    assert factory.preference == 10
    assert factory.virtio_ids is None
    assert Capability.OWN_CHANNELS not in factory.capabilities
    assert Capability.EXIT_COUNTS in factory.capabilities


def test_every_unknown_option_is_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        plugin.create({"accel": "kvm", "b": 1})
    assert [problem.where for problem in caught.value.problems] == [
        "backend_options['accel']",
        "backend_options['b']",
    ]
    assert all(isinstance(problem, ConfigProblem) for problem in caught.value.problems)


def test_an_option_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be True or False, not 'yes'"):
        plugin.create({"small_guests": "yes"})
