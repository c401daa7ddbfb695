"""What `microvm.sync.Machine` has of a machine's devices."""

import socket

import pytest
import trio

from microvm import BootSource, ConfigError, DeviceConfig, MachineConfig
from microvm.abc import Capability, VirtioDevice
from microvm.plugins import DeviceFactory
from microvm.sync import Machine
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.platform import ScriptedBackend
from microvm.testing.plugins import plugin_manager


class Answering(VirtioDevice):
    """A device with a stream that it has said something on already."""

    device_id = 4
    queue_max_sizes = (16,)

    async def open_stream(self, name):
        near, far = socket.socketpair()
        with far:
            far.sendall(name.encode())
        return trio.SocketStream(trio.socket.from_stdlib_socket(near))

    async def command(self, what, arguments):
        if what != "add":
            return await super().command(what, arguments)
        return {"sum": sum(arguments.values())}

    async def run(self, activation):
        raise AssertionError


@pytest.fixture
def machine(tmp_path):
    backend = ScriptedBackend(
        capabilities=frozenset({Capability.OWN_KERNEL, Capability.VIRTIO_DEVICES})
    )
    device = DeviceFactory(
        name="answering", summary="for tests", virtio_id=4, create=lambda options: Answering()
    )
    config = MachineConfig(
        boot=BootSource(kernel=tiny_kernel(tmp_path / "kernel")),
        vsock=None,
        provisioners=(),
        devices=[DeviceConfig(name="answering")],
    )
    with Machine(config, plugins=plugin_manager(backend.factory(), device)) as machine:
        yield machine


def test_a_devices_stream_is_a_blocking_socket(machine) -> None:
    with machine.open_device_stream("answering0", "hello") as sock:
        assert sock.recv(100) == b"hello"
        assert sock.recv(100) == b""


def test_a_command_has_its_answer_or_its_error(machine) -> None:
    assert machine.device_command("answering0", "add", device=3, what=4) == {"sum": 7}
    with pytest.raises(ConfigError, match="no command 'subtract'"):
        machine.device_command("answering0", "subtract")
