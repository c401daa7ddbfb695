"""Machines on a hypervisor's vCPUs, whose guests are scripts."""

from pathlib import Path

import pytest

from microvm import BootSource, Machine, MachineConfig
from microvm.plugins import DeviceFactory
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.census import Census
from microvm.testing.hypervisor import FakeHypervisor
from microvm.testing.mmio_bench import UpperDevice
from microvm.testing.plugins import plugin_manager

from .scripted_machine import GuestScript, scripted_backend


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return tiny_kernel(tmp_path / "kernel")


@pytest.fixture
def machine_on(kernel: Path):
    """A machine on a hypervisor of scripts, one a vCPU."""

    def build(*scripts: GuestScript, hypervisor: FakeHypervisor | None = None, **config):
        hypervisor = hypervisor or FakeHypervisor(*scripts)
        upper = UpperDevice()

        def devices(options):
            return upper

        manager = plugin_manager(
            scripted_backend(hypervisor),
            DeviceFactory(name="upper", summary="capitals", virtio_id=42, create=devices),
        )
        given = {
            "backend": "scripts",
            "boot": BootSource(kernel=kernel),
            "vsock": None,
            "provisioners": (),
            "vcpu_count": max(1, len(scripts)),
            **config,
        }
        machine = Machine(MachineConfig(**given), plugins=manager)
        machine.hypervisor = hypervisor
        machine.upper = upper
        return machine

    return build


@pytest.fixture
def leaves_nothing():
    before = Census.take()
    yield
    assert Census.take() == before
