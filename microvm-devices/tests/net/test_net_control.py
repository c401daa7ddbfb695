"""The control queue: row 50 of the hazard catalogue."""

import struct
import tracemalloc

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from microvm.errors import QueueError
from microvm.testing.queue_driver import activation
from microvm.virtio.chain import DESC_F_NEXT, DESC_F_WRITE
from microvm.virtio.queue import VirtQueue
from microvm_devices.net.control import ERR, OK, Control
from microvm_devices.net.device import NetDevice
from microvm_devices.net.features import F_CTRL_VQ, F_MQ
from microvm_devices.net.testing import MAC, PEER, NetDriver, ScriptedNet, running, settings

RX, MACS, VLAN, ANNOUNCE, MQ = range(5)
NO_TABLES = struct.pack("<II", 0, 0)


def control(*, mac_settable: bool = True, pairs: int = 4, multiqueue: bool = True) -> Control:
    return Control(mac=MAC, mac_settable=mac_settable, max_pairs=pairs, multiqueue=multiqueue)


@pytest.mark.parametrize("command", range(6))
def test_receive_modes_are_acknowledged(command: int) -> None:
    assert control().command(bytes([RX, command, 1])) == OK
    assert control().command(bytes([RX, command])) == ERR
    assert control().command(bytes([RX, command, 1, 1])) == ERR


def test_a_table_of_addresses_is_as_long_as_it_says() -> None:
    one = struct.pack("<I", 1) + PEER
    for body in (NO_TABLES, one + one, one + NO_TABLES[:4]):
        assert control().command(bytes([MACS, 0]) + body) == OK
        for end in range(len(body)):
            assert control().command(bytes([MACS, 0]) + body[:end]) == ERR
        assert control().command(bytes([MACS, 0]) + body + b"x") == ERR


def test_row_50_a_table_that_claims_four_thousand_million_addresses_costs_nothing() -> None:
    tracemalloc.start()
    try:
        assert control().command(bytes([MACS, 0]) + b"\xff" * 4 + PEER) == ERR
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_the_address_can_be_set_unless_it_was_given_and_to_no_groups() -> None:
    made = control()
    assert made.command(bytes([MACS, 1]) + PEER) == OK
    assert made.mac == PEER
    for wrong in (b"\x01" + PEER[1:], bytes(6), PEER[:5], PEER + b"x"):
        assert made.command(bytes([MACS, 1]) + wrong) == ERR
    assert made.mac == PEER
    fixed = control(mac_settable=False)
    assert fixed.command(bytes([MACS, 1]) + PEER) == ERR
    assert fixed.mac == MAC


@pytest.mark.parametrize(
    ("pairs", "ack"), [(0, ERR), (1, OK), (4, OK), (5, ERR), (0x8001, ERR), (0xFFFF, ERR)]
)
def test_row_50_as_many_pairs_as_there_are(pairs: int, ack: int) -> None:
    made = control()
    assert made.command(bytes([MQ, 0]) + struct.pack("<H", pairs)) == ack
    assert made.pairs == (pairs if ack == OK else 1)
    without = control(multiqueue=False)
    assert without.command(bytes([MQ, 0]) + struct.pack("<H", pairs)) == ERR


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"\0",
        bytes([RX, 6, 1]),
        bytes([RX, 255, 1]),
        bytes([MACS, 2]) + PEER,
        bytes([VLAN, 0]) + struct.pack("<H", 4096),
        bytes([ANNOUNCE, 0]),
        bytes([MQ, 1]) + struct.pack("<IH", 0, 0xFFFF),  # RSS
        bytes([MQ, 2]),
        bytes([MQ, 0, 1]),
        bytes([5, 0]) + bytes(8),
        b"\xff" * 100,
    ],
)
def test_row_50_what_is_not_offered_is_an_error(command: bytes) -> None:
    assert control().command(command) == ERR


@given(st.binary(max_size=300))
def test_row_50_any_command_has_an_answer(command: bytes) -> None:
    made = control()
    assert made.command(command) in (OK, ERR)
    assert 1 <= made.pairs <= 4
    assert not made.mac[0] & 1


# --- on its queue --------------------------------------------------------------------------------


async def test_commands_are_answered_on_the_queue_behind_the_pairs() -> None:
    device = NetDevice(ScriptedNet(), settings(queues=2))
    async with running(device, F_CTRL_VQ | F_MQ, pairs=2) as driver:
        assert await driver.command(MACS, 1, PEER) == OK
        assert device.read_config(0, 6) == PEER
        assert await driver.command(VLAN, 0, b"\0\0") == ERR
        assert device.counters()["errors"] == 1
    device.reset()
    assert device.read_config(0, 6) == MAC


async def test_without_mq_the_control_queue_is_the_third_however_many_pairs_there_might_be() -> (
    None
):
    async with running(NetDevice(ScriptedNet(), settings(queues=4)), F_CTRL_VQ) as driver:
        assert await driver.command(RX, 0, 1) == OK
        assert await driver.command(MQ, 0, b"\1\0") == ERR


async def test_31_commands_that_come_while_others_are_served_are_not_forgotten() -> None:
    """Row 31: a vCPU asks again as soon as it has its answer, while the device is at it."""
    device = NetDevice(ScriptedNet(), settings())
    driver = NetDriver(F_CTRL_VQ, size=4)
    left = 20

    class Quick(VirtQueue):
        __slots__ = ()

        def add_used(self, head: int, written: int) -> None:
            nonlocal left
            super().add_used(head, written)
            driver.control.used()
            if left:
                left -= 1
                driver.control.add([b"\0\0\1"], [1])
                driver.control.kick()

    driver.control.add([b"\0\0\1"], [1])
    driver.control.kick()
    active = activation(*driver.queues, features=driver.features)
    quick = Quick(driver.memory, driver.control.layout, features=driver.features)
    queues = (*active.queues[:2], attrs.evolve(active.queues[2], queue=quick))
    async with device.lifespan(), trio.open_nursery() as nursery:
        nursery.start_soon(device.run, attrs.evolve(active, queues=queues))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert left == 0
    assert driver.control.used_elements() == []


@pytest.mark.parametrize("readable", [[], [b"\0"], [b"\0", b"\0", b"\1"], [bytes(1 << 20)]])
async def test_row_50_a_command_is_cut_in_any_way_and_of_any_length(readable: list[bytes]) -> None:
    async with running(NetDevice(ScriptedNet(), settings()), F_CTRL_VQ) as driver:
        used = await driver.control.ask(readable, [1, 3])
        assert used.written == 1
        assert used.data[0] == (OK if len(readable) == 3 else ERR)


async def test_row_50_a_command_of_any_length_costs_what_is_looked_at_of_it() -> None:
    async with running(NetDevice(ScriptedNet(), settings()), F_CTRL_VQ) as driver:
        control = driver.control
        block, _ = control.heap.take(1 << 20)
        ack, _ = control.heap.take(1)
        for index in range(32):
            control.write_descriptor(index, block, 1 << 20, DESC_F_NEXT, index + 1)
        control.write_descriptor(32, ack, 1, DESC_F_WRITE)
        tracemalloc.start()
        try:
            control.offer(0)
            control.kick()
            await trio.testing.wait_all_tasks_blocked()
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        assert control.used_elements() == [(0, 1)]
        assert driver.memory.read(ack, 1) == bytes([ERR])


async def test_row_50_a_command_without_room_for_its_answer_is_the_drivers_fault() -> None:
    device = NetDevice(ScriptedNet(), settings())
    driver = NetDriver(F_CTRL_VQ)
    driver.control.add([b"\0\0\1"])
    driver.control.kick()
    async with device.lifespan():
        with trio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
            await driver.drive(device)
    assert caught.group_contains(QueueError, match="no room for its answer")
