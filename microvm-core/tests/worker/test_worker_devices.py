"""Devices in a worker process: their streams come as sockets, and they do as they are told."""

import pytest
import trio

from microvm import ConfigError
from microvm.errors import BackendCrashed, GuestGone

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_a_devices_stream_is_a_socket_here(rig):
    async with (
        rig.machine(devices=[rig.diary()]) as machine,
        await machine.open_device_stream("diary0", "pages") as stream,
    ):
        assert isinstance(stream, trio.SocketStream)
        await stream.send_all(b"dear diary")
        await stream.send_eof()
        assert b"".join([chunk async for chunk in stream]) == b"dear diary"


async def test_a_command_is_done_there_and_its_answer_comes_back(rig):
    async with rig.machine(devices=[rig.diary()]) as machine:
        facts = await machine.device_command("diary0", "write", page="monday", text="rain")
        assert (rig.folder / "diary" / "monday").read_text() == "rain"
        assert (rig.folder / "diary" / "entered").read_text() == str(facts["pid"])
        assert facts["pages"] == 1


async def test_what_there_is_not_is_refused_in_the_devices_words(rig):
    async with rig.machine(devices=[rig.diary()]) as machine:
        with pytest.raises(ConfigError, match="no stream 'covers'"):
            await machine.open_device_stream("diary0", "covers")
        with pytest.raises(ConfigError, match="no command 'burn'"):
            await machine.device_command("diary0", "burn")
        with pytest.raises(ConfigError, match="no device 'blk0'; it has diary0"):
            await machine.open_device_stream("blk0", "pages")
        with pytest.raises(ConfigError, match="no device 'blk0'; it has diary0"):
            await machine.device_command("blk0", "write")
        with pytest.raises(ConfigError, match="open_device_stream or"):
            machine.device("diary0")


async def test_what_is_no_json_is_refused_and_costs_nothing(rig):
    async with rig.machine(devices=[rig.diary()]) as machine:
        with pytest.raises(ConfigError, match="can't be asked so"):
            await machine.device_command("diary0", "write", page=b"monday", text="rain")
        with pytest.raises(ConfigError, match="can't be asked so"):
            await machine.device_command("diary0", "write", page="monday", text="a" * (3 << 20))
        with pytest.raises(BackendCrashed, match="not list"):
            await machine.device_command("diary0", "list")
        assert machine.state == "running"


async def test_a_command_may_be_cancelled_and_others_go_on(rig):
    async with rig.machine(devices=[rig.diary()]) as machine:
        with trio.move_on_after(0.05):
            await machine.device_command("diary0", "sleep")
        facts = await machine.device_command("diary0", "write", page="monday", text="rain")
        assert facts["pages"] == 1


async def test_a_machine_that_has_ended_has_no_devices_to_ask(rig):
    async with rig.machine("panic", devices=[rig.diary()]) as machine:
        await machine.wait()
        with pytest.raises(GuestGone, match="has ended"):
            await machine.device_command("diary0", "write", page="monday", text="rain")
        with pytest.raises(GuestGone, match="has ended"):
            await machine.open_device_stream("diary0", "pages")
