"""QEMU's command line for a machine. Pure.

Every choice here was measured or is there for a reason that docs/backends/qemu.md gives. No value
in it comes from a guest, and none from a user but sizes, paths as arguments of their own, and the
kernel's words; QEMU does not split those three kinds at commas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from microvm.config import MAX_CMDLINE_BYTES, ConfigProblem
from microvm_qemu._devices import FRONT_ENDS, device_arguments, escape_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from microvm.abc import MachinePlan
    from microvm.config import MachineConfig
    from microvm_qemu._facts import QemuFacts
    from microvm_qemu._options import QemuOptions

BUS_NUMBERS: Final = (7, 6, 5, 4, 2, 1, 0)
"""virtio-mmio transports in the order in which they are taken.

The machine has eight, with interrupts 5 to 12. Linux finds them in falling order, so the first
device of a plan is the first of its kind in the guest (``vda``). Number 3 would share interrupt 8
with the real-time clock, whose driver does not share.
"""

MAX_DEVICES: Final = len(BUS_NUMBERS)

DEVICE_WORD_BYTES: Final = len(" virtio_mmio.device=512@0xfeb00e00:12")
"""What QEMU adds to the kernel's command line for each device."""

MACHINE_OPTIONS: Final[Mapping[str, str]] = {
    # Without ACPI the devices are named on the kernel's command line, and need no AML interpreter.
    "acpi": "off",
    "auto-kernel-cmdline": "on",
    # Without the clock Linux waits a second for it, and has no date.
    "rtc": "on",
    # Timer and its interrupts; the PIT is what the CPU's own counter is measured against.
    "pit": "on",
    "pic": "on",
    "isa-serial": "on",
    # Guest memory has no business in a core dump of QEMU, nor in same-page merging.
    "dump-guest-core": "off",
    "mem-merge": "off",
    "memory-backend": "ram0",
}

SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""QEMU's seccomp filter, everything on: a guest that breaks out of the emulator can't execute a
program. Costs nothing measurable."""


@attrs.frozen(kw_only=True)
class Wiring:
    """What QEMU is joined to: descriptors that it inherits, by number, and sockets by name."""

    monitor: int
    console: int
    devices: tuple[int | str, ...]
    """One a device of the plan, in its order."""


def kernel_words(
    config: MachineConfig, options: QemuOptions, *, counter_khz: int | None
) -> tuple[str, ...]:
    """What a guest's kernel has to be told on this machine type.

    Args:
        config: The machine.
        options: The backend's.
        counter_khz: The rate of the host's time stamp counter, if that is known.
    """
    words = [
        "console=ttyS0",
        # Errors still show, and so does everything from a panic on.
        "quiet",
        # A triple fault: there is no keyboard controller, and no firmware to ask.
        "reboot=t",
        # A panic ends the machine at once; the console says that it was one.
        "panic=-1",
        "8250.nr_uarts=1",
    ]
    if options.accel == "tcg":
        # The PIT's test interrupts come late on a busy host, and Linux would panic for it.
        words.append("no_timer_check")
        # QEMU derives the counters of all CPUs from one clock. Not told so, Linux has nothing to
        # check it against, and leaves high-resolution timers off.
        words.append("tsc=reliable")
        if counter_khz is not None:
            # The guest's counter is the host's. Measuring it fails when the host is busy, and
            # leaves the guest with a clock of 4 ms that falls behind.
            words.append(f"tsc_early_khz={counter_khz}")
        if config.vcpu_count == 1:
            # Linux takes 230 ms to measure the APIC's timer. The PIT does as well for one CPU; it
            # can't give several of them high-resolution timers.
            words.append("nolapic_timer")
    return tuple(words)


def problems_with(plan: MachinePlan, facts: QemuFacts, *, host_mem_mib: int) -> list[ConfigProblem]:
    """What keeps this machine from being built here, all of it."""
    problems: list[ConfigProblem] = []
    config = plan.config
    if config.mem_size_mib > host_mem_mib:
        problems.append(
            ConfigProblem(
                "mem_size_mib",
                f"the host has {host_mem_mib} MiB of memory, not {config.mem_size_mib}.",
            )
        )
    if len(plan.devices) > MAX_DEVICES:
        problems.append(
            ConfigProblem(
                "devices",
                f"QEMU's microvm machine takes {MAX_DEVICES} with the vsock device, "
                f"not {len(plan.devices)}.",
            )
        )
    for attached in plan.devices:
        front_end = FRONT_ENDS.get(attached.device.device_id)
        if front_end is None:
            problems.append(
                ConfigProblem(
                    "devices",
                    f"{attached.name!r} has virtio device id {attached.device.device_id}, for "
                    "which QEMU has no vhost-user front end that works here.",
                )
            )
        elif front_end not in facts.devices:
            problems.append(
                ConfigProblem(
                    "devices",
                    f"{attached.name!r} needs QEMU's {front_end!r}, which this one "
                    f"({facts.version_text}) was built without.",
                )
            )
    spare = MAX_CMDLINE_BYTES - DEVICE_WORD_BYTES * len(plan.devices)
    if len(plan.cmdline.encode()) > spare:
        problems.append(
            ConfigProblem(
                "cmdline",
                f"the kernel's command line is {len(plan.cmdline.encode())} bytes; with "
                f"{len(plan.devices)} devices, which QEMU adds to it, {spare} are left.",
            )
        )
    if plan.devices and "--" in plan.cmdline.split():
        problems.append(
            ConfigProblem(
                "cmdline",
                "what is behind '--' is for the guest's init, and so would be the words for "
                "devices, which QEMU puts behind all others.",
                "Leave it out.",
            )
        )
    return problems


def qemu_arguments(
    plan: MachinePlan, options: QemuOptions, facts: QemuFacts, wiring: Wiring
) -> list[str]:
    """The arguments, without the program, for a plan that `problems_with` found none with."""
    size = f"{plan.config.mem_size_mib}M"
    arguments = ["-nodefaults", "-no-user-config"]
    if facts.sandbox:
        arguments += ["-sandbox", SANDBOX]
    arguments += [
        "-machine",
        ",".join(["microvm", *(f"{key}={value}" for key, value in MACHINE_OPTIONS.items())]),
        # Shared, so that a device's task can see it; sealed by default, so that it can't shrink.
        "-object",
        f"memory-backend-memfd,id=ram0,size={size},share=on",
        "-m",
        size,
        "-accel",
        options.accel,
        "-cpu",
        "host" if options.accel == "kvm" else "max",
        "-smp",
        str(plan.config.vcpu_count),
        "-no-reboot",
        # The monitor lets it run, when it is ready to hear how it ends.
        "-S",
        "-display",
        "none",
        *_socket("monitor", wiring.monitor),
        "-mon",
        "chardev=monitor,mode=control",
        *_socket("console", wiring.console),
        "-serial",
        "chardev:console",
        # VIRTIO_F_VERSION_1 needs the second version of virtio-mmio, which QEMU keeps off.
        "-global",
        "virtio-mmio.force-legacy=false",
    ]
    for index, (attached, end, bus) in enumerate(
        zip(plan.devices, wiring.devices, BUS_NUMBERS, strict=False)
    ):
        chardev = f"device{index}"
        arguments += _socket(chardev, end)
        arguments += device_arguments(
            attached.device,
            chardev=chardev,
            bus=f"virtio-mmio-bus.{bus}",
            vcpu_count=plan.config.vcpu_count,
        )
    arguments += ["-kernel", str(plan.kernel.absolute())]
    if plan.initrd is not None:
        arguments += ["-initrd", str(plan.initrd.absolute())]
    arguments += ["-append", plan.cmdline]
    return [*arguments, *options.extra_args]


def _socket(name: str, end: int | str) -> Sequence[str]:
    where = f"fd={end}" if isinstance(end, int) else f"path={escape_value(end)}"
    return ("-chardev", f"socket,id={name},{where}")
