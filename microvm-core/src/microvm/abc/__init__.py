"""The interfaces that backends, devices, net backends and provisioners implement.

A plugin depends on this package and on values from `microvm.config`; core depends on nothing of
the plugin but what stands here. Who calls what, in order:

1. core asks a `BackendFactory` to `probe` and, when chosen, to `create` a `HostedPlatform` or a
   `Hypervisor`;
2. core asks each `DeviceFactory` for a `VirtioDevice` and holds its `lifespan` open;
3. core hands devices and boot files to `HostedPlatform.start` as a `MachinePlan`, or builds the
   machine itself on the `Vm` and `Vcpu`s of a `Hypervisor`;
4. the transport runs each device's `run` while the guest's driver has it in use;
5. each `Provisioner` opens its channels before the guest starts and yields a `Guest` after.

Everything async here is for trio and runs on the trio thread that entered the machine. What a
vCPU's thread calls (`Vcpu`, `BusDevice`) says so.
"""

from __future__ import annotations

from microvm.abc.backend import Capability, ProbeReport
from microvm.abc.channels import GuestChannels
from microvm.abc.console import ConsoleSink, TerminalDevice
from microvm.abc.device import (
    Activation,
    ActiveQueue,
    BusDevice,
    Doorbell,
    Fact,
    IrqLine,
    VirtioDevice,
)
from microvm.abc.files import CopyLimits, CopyReport, FileInfo, FileKind, GuestFiles
from microvm.abc.guest import Guest, GuestLink, GuestProcess, Provisioner, RunResult, TtySize
from microvm.abc.hypervisor import GuestDoorbell, Hypervisor, Vcpu, Vm
from microvm.abc.jobs import GuestJob, JobOutput, JobStatus
from microvm.abc.needs import ImageFacts, ProvisionerNeeds
from microvm.abc.net import Frame, NetBackend, NetLink, NetLinks, Offload
from microvm.abc.platform import AttachedDevice, HostedPlatform, MachinePlan, RunningMachine

__all__ = [
    "Activation",
    "ActiveQueue",
    "AttachedDevice",
    "BusDevice",
    "Capability",
    "ConsoleSink",
    "CopyLimits",
    "CopyReport",
    "Doorbell",
    "Fact",
    "FileInfo",
    "FileKind",
    "Frame",
    "Guest",
    "GuestChannels",
    "GuestDoorbell",
    "GuestFiles",
    "GuestJob",
    "GuestLink",
    "GuestProcess",
    "HostedPlatform",
    "Hypervisor",
    "ImageFacts",
    "IrqLine",
    "JobOutput",
    "JobStatus",
    "MachinePlan",
    "NetBackend",
    "NetLink",
    "NetLinks",
    "Offload",
    "ProbeReport",
    "Provisioner",
    "ProvisionerNeeds",
    "RunResult",
    "RunningMachine",
    "TerminalDevice",
    "TtySize",
    "Vcpu",
    "VirtioDevice",
    "Vm",
]
