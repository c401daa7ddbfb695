"""The register file: what can be read, what can be written when, and that nothing else matters.

Rows 1 to 12, 14 and 15 of the hazard catalogue; 13 and 33 are in test_mmio_runs.py.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm.bus import Bus
from microvm.errors import QueueError
from microvm.memory import GuestMemory, GuestRegion
from microvm.testing.mmio_bench import QUEUE_SIZE, UpperDevice, build
from microvm.testing.mmio_driver import MmioDriver
from microvm.virtio.features import RING_FEATURES, RING_PACKED, VERSION_1
from microvm.virtio.mmio import registers
from microvm.virtio.queue import QueueLayout

DEVICE_FEATURE = 1 << 3


@pytest.fixture
def bench():
    return build(UpperDevice(queues=2))


@pytest.fixture
def driver(bench) -> MmioDriver:
    return bench.driver


def test_magic_version_device_and_vendor_are_the_standards(driver) -> None:
    assert driver.read(0x000) == 0x74726976
    assert driver.read(0x004) == 2
    assert driver.read(0x008) == 42
    assert driver.read(0x00C) == 0


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("register", [0x000, 0x010, 0x070, 0x0FC])
def test_a_register_read_with_another_width_is_0(bench, register, size) -> None:
    assert bench.transport.read(register, size) == 0


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_register_written_with_another_width_keeps_its_value(bench, driver, size) -> None:
    bench.transport.write(registers.STATUS, size, 1)
    assert driver.status == 0


@pytest.mark.parametrize("offset", [0x002, 0x018, 0x028, 0x03C, 0x040, 0x054, 0x0C0, 0x0F8, 0x071])
def test_unknown_legacy_and_unaligned_registers_read_0_and_take_nothing(bench, offset) -> None:
    bench.transport.write(offset, 4, 0xFFFF_FFFF)
    assert bench.transport.read(offset, 4) == 0


def test_there_is_no_shared_memory_region(driver) -> None:
    driver.write(0x0AC, 7)
    assert driver.read(registers.SHM_LEN_LOW) == 0xFFFF_FFFF
    assert driver.read(registers.SHM_LEN_HIGH) == 0xFFFF_FFFF


def test_the_devices_features_and_the_rings_are_offered(driver) -> None:
    assert driver.offered == DEVICE_FEATURE | RING_FEATURES


def test_a_features_selector_beyond_the_second_word_reads_0(driver) -> None:
    driver.write(registers.DEVICE_FEATURES_SEL, 2)
    assert driver.read(registers.DEVICE_FEATURES) == 0


@pytest.mark.parametrize("address", [0xFFD, 0xFFE, 0xFFF])
def test_3_an_access_over_the_windows_end_is_not_the_devices(bench, driver, address) -> None:
    bus = Bus("address")
    bus.insert(0x1000, 0x1000, bench.transport)
    driver.status = 1
    driver.status = 3
    assert bus.read(0x1000 + address, 4) == 0xFFFF_FFFF
    assert bus.read(0x1000 + address, 8) == (1 << 64) - 1
    bus.write(0x1000 + address, 4, 0xFFFF_FFFF)
    assert bench.device.diary == []


def test_3_a_string_instruction_is_as_many_accesses_of_its_width(bench, driver) -> None:
    bus = Bus("address")
    bus.insert(0x1000, 0x1000, bench.transport)
    bus.write_many(0x1000 + registers.STATUS, 4, b"\1\0\0\0\3\0\0\0\1\0\0\0")
    assert driver.status == 3
    bus.write_many(0x1000 + registers.STATUS, 1, bytes(4))
    assert driver.status == 3
    assert bus.read_many(0x1000, 4, 2) == b"virtvirt"
    assert bus.read_many(0x1000, 2, 2) == bytes(4)


def test_11_every_write_in_every_state() -> None:
    """All values of a byte, and some beyond: next states as the standard has them."""
    paths = {0: (), 1: (1,), 3: (1, 3), 11: (1, 3, 11), 15: (1, 3, 11, 15)}
    following = {0: 1, 1: 3, 3: 11, 11: 15}
    for state, path in paths.items():
        for value in (*range(1, 0x100), 0x100 | state, 0xFFFF_FFFF):
            # Without a loop a reset from DRIVER_OK would wait for ever: a new transport each time.
            driver = build(UpperDevice()).driver
            for step in path:
                driver.status = step
                if step == 3:
                    driver.accept(VERSION_1)
            driver.status = value
            wanted = value & ~0x40  # which only the device sets; a driver may have read it
            if wanted == following.get(state) or wanted == state | 0x80:
                assert driver.status == wanted
            else:
                assert driver.status == state, hex(value)


def test_status_moves_one_bit_at_a_time_and_in_order(driver) -> None:
    for value in (1, 3):
        driver.status = value
        assert driver.status == value
    driver.accept(VERSION_1)
    for value in (11, 15):
        driver.status = value
        assert driver.status == value


@pytest.mark.parametrize("value", [2, 3, 4, 7, 8, 11, 15, 16, 0x20, 0x7F, 0xFF, 0xFFFF_FFFF])
def test_a_first_status_but_acknowledge_is_refused(driver, value) -> None:
    driver.status = value
    assert driver.status == 0


@pytest.mark.parametrize("value", [1, 2, 4, 7, 8, 15, 19, 0x100 | 11])
def test_from_driver_only_features_ok_can_follow(driver, value) -> None:
    driver.status = 1
    driver.status = 3
    driver.accept(VERSION_1)
    driver.status = value
    assert driver.status == 3


def test_a_driver_that_has_failed_can_only_reset(driver) -> None:
    driver.status = 1
    driver.status = 0x81
    assert driver.status == 0x81
    driver.status = 3
    driver.status = 0x83
    assert driver.status == 0x81
    driver.reset()
    assert driver.status == 0


@pytest.mark.parametrize(
    ("features", "why"),
    [
        (0, "no VERSION_1"),
        (RING_FEATURES & ~VERSION_1, "no VERSION_1"),
        (VERSION_1 | 1 << 4, "a feature of the device that was not offered"),
        (VERSION_1 | RING_PACKED, "a feature of the transport that was not offered"),
        (VERSION_1 | 1 << 63, "the last bit"),
    ],
)
def test_features_that_can_not_be_accepted_leave_features_ok_clear(driver, features, why) -> None:
    assert driver.negotiate(features) == 3, why


def test_a_feature_beyond_the_second_word_is_remembered_as_wrong(driver) -> None:
    driver.status = 1
    driver.status = 3
    driver.accept(VERSION_1)
    driver.write(registers.DRIVER_FEATURES_SEL, 2)
    driver.write(registers.DRIVER_FEATURES, 1)
    driver.status = 11
    assert driver.status == 3


def test_features_can_not_be_changed_after_features_ok(bench, driver) -> None:
    driver.negotiate(VERSION_1)
    driver.accept(RING_FEATURES | RING_PACKED)
    driver.set_queue(0, bench.queues[0].layout)
    driver.status = 15
    assert bench.transport._handed.features == VERSION_1


@pytest.mark.parametrize("queue", [2, 3, 0xFFFF, 0xFFFF_FFFF])
def test_a_queue_that_is_not_there_reads_0_and_takes_nothing(bench, driver, queue) -> None:
    driver.negotiate()
    driver.set_queue(0, bench.queues[0].layout)
    driver.write(registers.QUEUE_SEL, queue)
    for register in (registers.QUEUE_NUM, registers.QUEUE_DESC_LOW, registers.QUEUE_READY):
        driver.write(register, 1)
    assert driver.read(registers.QUEUE_NUM_MAX) == 0
    assert driver.read(registers.QUEUE_READY) == 0


@pytest.mark.parametrize("size", [0, 3, 17, 2 * QUEUE_SIZE, 257, 0x10000, 0xFFFF_FFFF])
def test_a_queue_of_a_size_that_can_not_be_does_not_become_ready(bench, driver, size) -> None:
    driver.negotiate()
    driver.set_queue(0, bench.queues[0].layout)
    driver.write(registers.QUEUE_READY, 0)
    driver.write(registers.QUEUE_NUM, size)
    driver.write(registers.QUEUE_READY, 1)
    assert driver.read(registers.QUEUE_READY) == 0


def test_a_ready_queues_size_and_place_are_fixed(bench, driver) -> None:
    driver.negotiate()
    layout = bench.queues[0].layout
    driver.set_queue(0, layout)
    driver.write(registers.QUEUE_NUM, 2)
    driver.write(registers.QUEUE_DESC_LOW, 0xDEAD_0000)
    driver.status = 15
    driver.write(registers.QUEUE_NUM, 4)
    (queue,) = bench.transport._handed.queues
    assert queue.layout == layout


def test_a_queue_is_set_up_between_features_ok_and_driver_ok_only(bench, driver) -> None:
    driver.set_queue(0, bench.queues[0].layout)
    assert driver.read(registers.QUEUE_READY) == 0


def test_the_device_gets_the_queues_up_to_the_first_that_is_not_ready(bench, driver) -> None:
    driver.negotiate()
    driver.set_queue(1, bench.queues[1].layout)
    driver.status = 15
    assert bench.transport._handed.queues == ()


def test_12_the_data_path_goes_by_what_was_negotiated(bench, driver) -> None:
    """Not by what was offered: neither indirect tables nor EVENT_IDX."""
    queue = bench.queues[0]
    queue.features = VERSION_1
    queue.add([b"x"], [4], indirect=True)
    driver.negotiate(VERSION_1)
    driver.set_queue(0, queue.layout)
    driver.status = 15
    (handed,) = bench.transport._handed.queues
    handed.disable_notification()
    assert queue.used_flags == 1
    with pytest.raises(QueueError, match="not negotiated"):
        handed.pop()


@pytest.mark.parametrize("part", ["desc", "avail", "used"])
@pytest.mark.parametrize("address", [0xFFF0, 0x1_FFF0, 0x2_0000])
def test_10_rings_over_the_end_of_a_region_are_refused(part, address) -> None:
    """Into the next region, into the gap behind it, and in the gap."""
    memory = GuestMemory(
        GuestRegion(start=start, view=memoryview(bytearray(0x1_0000)))
        for start in (0, 0x1_0000, 0x3_0000)
    )
    bench = build(UpperDevice(), memory=memory)
    places = {"desc": 0x4000, "avail": 0x5000, "used": 0x6000, part: address}
    bench.driver.initialize([QueueLayout(size=16, **places)])
    assert bench.driver.status == 15 | 0x40


BAD_PLACES = {
    "descriptor table misaligned": {"desc": 8},
    "available ring misaligned": {"avail": 0x5001},
    "used ring misaligned": {"used": 0x6002},
    "outside RAM": {"desc": 1 << 30},
    "over the end of RAM": {"used": (1 << 20) - 4},
    "wrapping 2^64": {"desc": (1 << 64) - 16},
    "overlapping": {"avail": 0x4000, "desc": 0x4000},
}


@pytest.mark.parametrize("change", BAD_PLACES.values(), ids=BAD_PLACES)
def test_rings_that_can_not_be_used_are_refused_at_driver_ok(bench, driver, change) -> None:
    place = {"desc": 0x4000, "avail": 0x5000, "used": 0x6000, **change}
    driver.negotiate()
    driver.write(registers.QUEUE_NUM, 16)
    for low, name in ((0x80, "desc"), (0x90, "avail"), (0xA0, "used")):
        driver.write(low, place[name] & 0xFFFF_FFFF)
        driver.write(low + 4, place[name] >> 32)
    driver.write(registers.QUEUE_READY, 1)
    driver.status = 15
    assert driver.status == 15 | 0x40
    assert driver.take_interrupt() == registers.INTERRUPT_CONFIG_CHANGE
    assert bench.irq.triggers == 1
    driver.reset()
    assert driver.status == 0


def test_a_doorbell_before_driver_ok_or_of_no_queue_is_not_heard(bench, driver) -> None:
    driver.negotiate()
    driver.notify(0)
    driver.status = 15
    for queue in (2, 0x8000_0000, 0xFFFF_FFFF):
        driver.notify(queue)
    assert [doorbell.rings for doorbell in bench.doorbells] == [0, 0]
    driver.notify(1)
    assert [doorbell.rings for doorbell in bench.doorbells] == [0, 1]


def test_an_acknowledgement_clears_only_what_it_names(bench, driver) -> None:
    bench.transport.config_changed()
    driver.write(registers.INTERRUPT_ACK, 1)
    assert driver.read(registers.INTERRUPT_STATUS) == 2
    driver.write(registers.INTERRUPT_ACK, 0xFFFF_FFFF)
    assert driver.read(registers.INTERRUPT_STATUS) == 0


def test_a_configuration_change_is_told_and_seen_in_the_generation(bench, driver) -> None:
    before = driver.read(registers.CONFIG_GENERATION)
    bench.transport.config_changed()
    assert driver.read(registers.CONFIG_GENERATION) != before
    assert bench.irq.triggers == 1


def test_the_configuration_space_takes_every_width(bench) -> None:
    assert bench.transport.read(0x100, 1) == 0x01
    assert bench.transport.read(0x102, 2) == 0x0403
    assert bench.transport.read(0x104, 4) == 0x08070605
    assert bench.transport.read(0x100, 8) == 0x0807060504030201
    assert bench.transport.read(0x106, 4) == 0x0807
    assert bench.transport.read(0xFF8, 8) == 0


def test_what_a_device_names_always_writable_is_so_before_there_is_a_driver() -> None:
    class Emergency(UpperDevice):
        always_writable = range(8, 9)

    bench = build(Emergency())
    bench.driver.reset()
    for offset, size, value in ((0x108, 4, 0x41), (0x108, 1, 0x42), (0x104, 4, 1), (0x109, 1, 1)):
        bench.transport.write(offset, size, value)
    assert [entry for entry in bench.device.diary if entry.startswith("config")] == [
        "config 8 41000000",
        "config 8 42",
    ]


def test_the_configuration_space_is_written_by_a_driver_alone(bench, driver) -> None:
    bench.transport.write(0x100, 2, 0x1234)
    driver.status = 1
    bench.transport.write(0x100, 2, 0x1234)
    driver.status = 3
    bench.transport.write(0x101, 2, 0x1234)
    driver.status = 0x83
    bench.transport.write(0x100, 2, 0x1234)
    assert bench.device.diary == ["config 1 3412"]


OFFSETS = st.one_of(st.integers(0, 0x110), st.integers(0, 0xFF8))
VALUES = st.one_of(st.integers(0, 0x1F), st.integers(0, (1 << 64) - 1))
ACCESSES = st.lists(
    st.tuples(OFFSETS, st.sampled_from([1, 2, 4, 8]), st.one_of(st.none(), VALUES)), max_size=60
)


@settings(max_examples=200, deadline=None)
@given(ACCESSES)
def test_whatever_a_guest_does_to_the_registers_every_access_is_answered(accesses) -> None:
    bench = build(UpperDevice())
    for offset, size, value in accesses:
        if value is None:
            answer = bench.transport.read(offset, size)
            assert 0 <= answer < 1 << 8 * size
        elif bench.transport._handed is None or offset != registers.STATUS:
            bench.transport.write(offset, size, value & ((1 << 8 * size) - 1))
    assert bench.driver.status & ~0xCF == 0
