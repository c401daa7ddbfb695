"""Guests that are scripts, in pieces; `machine_on` in the conftest runs them."""

from collections.abc import Callable

import trio

from microvm import Capability, DeviceConfig, Machine
from microvm.abc import ProbeReport
from microvm.arch.x86_64 import layout
from microvm.exits import MmioWrite, PioWrite
from microvm.plugins import BackendFactory
from microvm.testing.hypervisor import FakeHypervisor

WITHIN_S = 5
UPPER = DeviceConfig(name="upper")
I8042_RESET = PioWrite(0x64, 1, b"\xfe")

GuestScript = Callable[..., object]


def guest(*steps) -> GuestScript:
    def script(vcpu):
        for step in steps:  # noqa: UP028 - `yield from` would send the answers to a tuple
            yield step

    return script


def printed(text: str) -> list[PioWrite]:
    return [PioWrite(layout.COM1, 1, bytes((byte,))) for byte in text.encode()]


async def ending(machine: Machine):
    with trio.fail_after(WITHIN_S):
        async with machine:
            return await machine.wait()


# --- the first virtio-mmio device: register and value --------------------------------------------

RESET = (0x70, 0)
ACCEPT = ((0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11))
"""To FEATURES_OK, with VERSION_1 alone."""
QUEUE = ((0x30, 0), (0x38, 16), (0x80, 0x20_0000), (0x90, 0x20_1000), (0xA0, 0x20_2000), (0x44, 1))
DRIVER_OK = (0x70, 15)


def stores(*steps: tuple[int, int]) -> list[MmioWrite]:
    """A driver's stores to the device's registers."""
    base = layout.virtio_mmio_base(0)
    return [MmioWrite(base + offset, value.to_bytes(4, "little")) for offset, value in steps]


def scripted_backend(hypervisor: FakeHypervisor) -> BackendFactory:
    """The backend "scripts"."""
    return BackendFactory(
        name="scripts",
        summary="vCPUs of scripts",
        capabilities=frozenset(
            {
                Capability.OWN_KERNEL,
                Capability.VIRTIO_DEVICES,
                Capability.PAUSE,
                Capability.CONSOLE,
                Capability.EXIT_COUNTS,
            }
        ),
        probe=lambda options: ProbeReport(backend="scripts", usable=True, reason="It is."),
        create=lambda options: hypervisor,
    )
