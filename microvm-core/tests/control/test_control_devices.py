"""Devices by a machine's control socket: their streams are handed over, their commands done."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from microvm import BootSource, ConfigError, DeviceConfig, Machine, MachineConfig
from microvm.abc import Capability, VirtioDevice
from microvm.control import server as server_module
from microvm.control.client import ControlClient
from microvm.control.lines import Refused, request
from microvm.plugins import DeviceFactory
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.census import Census
from microvm.testing.platform import ScriptedBackend
from microvm.testing.plugins import plugin_manager

from .control_clients import NAME, connected


class Radio(VirtioDevice):
    """A device with one stream, whose other end is the test's, and a volume."""

    device_id = 4
    queue_max_sizes = (16,)

    def __init__(self, *, sockets: bool) -> None:
        self._sockets = sockets
        self.air: Any = None
        self.volume = 5
        self.waiting = 0

    async def open_stream(self, name: str) -> Any:
        if name == "silence":
            return await self._never()
        if name != "air":
            return await super().open_stream(name)
        if not self._sockets:
            near, self.air = trio.testing.memory_stream_pair()
            return near
        near, self.air = (
            trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair()
        )
        return near

    async def _never(self) -> Any:
        self.waiting += 1
        try:
            await trio.sleep_forever()
        finally:
            self.waiting -= 1

    async def command(self, what: str, arguments: Any) -> Any:
        if what == "silence":
            return await self._never()
        if what != "volume":
            return await super().command(what, arguments)
        self.volume = arguments.get("to", self.volume)
        return {"volume": self.volume}

    async def run(self, activation: Any) -> None:
        raise AssertionError


@pytest.fixture
def build(place: Path, tmp_path: Path) -> Callable[[Radio], Machine]:
    def build(radio: Radio) -> Machine:
        factory = DeviceFactory(
            name="radio", summary="for tests", virtio_id=4, create=lambda options: radio
        )
        backend = ScriptedBackend(
            capabilities=frozenset({Capability.OWN_KERNEL, Capability.VIRTIO_DEVICES})
        )
        config = MachineConfig(
            name=NAME,
            boot=BootSource(kernel=tiny_kernel(tmp_path / "kernel")),
            vsock=None,
            provisioners=(),
            devices=[DeviceConfig(name="radio")],
        )
        return Machine(config, plugins=plugin_manager(backend.factory(), factory))

    return build


def opened(name: str = "air") -> socket.socket:
    with ControlClient(NAME) as client:
        return client.open_stream("radio0", name)


@pytest.mark.parametrize("sockets", [True, False], ids=["socket", "other stream"])
async def test_a_stream_is_handed_over_and_outlives_the_connection(build, sockets) -> None:
    before = Census.take()
    radio = Radio(sockets=sockets)
    async with build(radio):
        sock = await trio.to_thread.run_sync(opened)
        assert not os.get_inheritable(sock.fileno())
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        with trio.fail_after(60):
            async with stream, radio.air:
                await stream.send_all(b"hello?")
                assert await radio.air.receive_some(100) == b"hello?"
                await radio.air.send_all(b"hello!")
                assert await stream.receive_some(100) == b"hello!"
                await stream.send_eof()
                assert await radio.air.receive_some(100) == b""
                await radio.air.send_all(b"bye")
                assert await stream.receive_some(100) == b"bye"
    assert Census.take().descriptors == before.descriptors


async def test_a_client_that_does_not_take_its_stream_closes_it(build, place) -> None:
    """It asks, and leaves; the device learns that nobody is there."""
    radio = Radio(sockets=True)
    async with build(radio) as machine:
        client = await connected(place)
        await client.send_all(request("device-stream", device="radio0", name="air"))
        await client.aclose()
        with trio.fail_after(60):
            while radio.air is None:
                await trio.testing.wait_all_tasks_blocked(0.001)
            assert await radio.air.receive_some(100) == b""
        await radio.air.aclose()
        assert machine.state == "running"


async def test_more_is_answered_on_the_same_connection(build) -> None:
    radio = Radio(sockets=True)

    def client() -> list[Any]:
        with ControlClient(NAME) as client:
            asked = {"device": "radio0", "name": "volume"}
            first = client.ask("device-command", **asked, arguments={"to": 11})
            client.open_stream("radio0", "air").close()
            return [first, client.ask("device-command", **asked), client.ask("info")["state"]]

    async with build(radio):
        assert await trio.to_thread.run_sync(client) == [{"volume": 11}] * 2 + ["running"]
        await radio.air.aclose()
    assert radio.volume == 11


@pytest.mark.parametrize("verb", ["device-command", "device-stream"])
@pytest.mark.parametrize("behind", [b"", b'{"do": "info"}\n', b"x"], ids=["", "a line", "a byte"])
async def test_who_leaves_gives_up_what_a_device_was_asked_for(
    build, place, monkeypatch, verb: str, behind: bytes
) -> None:
    """A balloon may wait for its driver as long as it likes: nobody's place goes with it."""
    monkeypatch.setattr(server_module, "MAX_CLIENTS", 2)
    radio = Radio(sockets=True)
    async with build(radio):
        for count in (1, 2):
            client = await connected(place)
            await client.send_all(request(verb, device="radio0", name="silence"))
            with trio.fail_after(60):
                while radio.waiting != 1:
                    await trio.testing.wait_all_tasks_blocked(0.001)
            await client.send_all(behind)
            await trio.testing.wait_all_tasks_blocked(0.001)
            await client.aclose()
            with trio.move_on_after(5):
                while radio.waiting:
                    await trio.testing.wait_all_tasks_blocked(0.001)
            assert radio.waiting == 0, f"client {count} has left, and its request goes on"

        def state() -> Any:
            with ControlClient(NAME) as client:
                return client.ask("info")["state"]

        assert await trio.to_thread.run_sync(state) == "running"


async def test_what_was_sent_behind_a_devices_command_is_answered_after_it(build, place) -> None:
    asked = request("device-command", device="radio0", name="volume", arguments={"to": 7})
    got = b""
    async with build(Radio(sockets=True)):
        client = await connected(place)
        with trio.fail_after(60):
            async with client:
                await client.send_all(asked + request("info") + asked)
                while got.count(b"\n") < 3:
                    got += await client.receive_some(1000)
    assert [b"volume" in line for line in got.splitlines()] == [True, False, True]


async def test_what_there_is_not_is_refused_in_the_devices_words(build) -> None:
    def refusal(verb: str, device: str, name: str) -> str:
        with ControlClient(NAME) as client, pytest.raises(Refused) as caught:
            client.ask(verb, device=device, name=name)
        return caught.value.message

    async with build(Radio(sockets=True)) as machine:
        for asked, said in (
            (("device-stream", "radio0", "water"), "no stream 'water'"),
            (("device-stream", "radio1", "air"), "no device 'radio1'; it has radio0"),
            (("device-command", "radio0", "burn"), "no command 'burn'"),
            (("device-command", "tv0", "volume"), "no device 'tv0'; it has radio0"),
        ):
            assert said in await trio.to_thread.run_sync(refusal, *asked)
        with pytest.raises(ConfigError, match="no stream 'water'"):
            await machine.open_device_stream("radio0", "water")
        await machine.stop()
        said = await trio.to_thread.run_sync(refusal, "device-stream", "radio0", "air")
        assert "The machine has ended." in said
