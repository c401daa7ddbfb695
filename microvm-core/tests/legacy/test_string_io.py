"""String instructions on the bus: every element of the count is handled."""

from microvm.abc import BusDevice
from microvm.bus import Bus


class Recorder(BusDevice):
    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []
        self._reads = 0

    def read(self, offset: int, size: int) -> int:
        self._reads += 1
        return self._reads

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


class BlockRecorder(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[tuple[int, int, bytes]] = []

    def write_block(self, offset: int, size: int, data: bytes) -> None:
        self.blocks.append((offset, size, data))


def bus_with(device: BusDevice) -> Bus:
    bus = Bus("port")
    bus.insert(0x10, 4, device)
    return bus


def test_a_block_is_as_many_writes_to_one_address() -> None:
    device = Recorder()
    bus_with(device).write_many(0x12, 2, b"\x01\x02\x03\x04\x05\x06")
    assert device.writes == [(2, 2, 0x0201), (2, 2, 0x0403), (2, 2, 0x0605)]


def test_a_device_that_takes_blocks_gets_it_whole() -> None:
    device = BlockRecorder()
    bus_with(device).write_many(0x11, 1, b"hello")
    assert device.blocks == [(1, 1, b"hello")]
    assert device.writes == []


def test_a_block_is_read_element_by_element() -> None:
    assert bus_with(Recorder()).read_many(0x10, 2, 3) == b"\x01\x00\x02\x00\x03\x00"


def test_where_there_is_nothing_blocks_are_all_ones_and_taken() -> None:
    bus = Bus("port")
    assert bus.read_many(0x10, 4, 2) == b"\xff" * 8
    bus.write_many(0x10, 1, b"x" * 65_536)


def test_an_element_that_reaches_beyond_the_device_is_not_for_it() -> None:
    device = BlockRecorder()
    bus_with(device).write_many(0x13, 2, b"abcd")
    assert device.blocks == []
