"""A vCPU's exits and what they come to, without a hypervisor."""

from collections.abc import Iterable, Iterator

import pytest

from microvm.abc import BusDevice
from microvm.bus import Bus
from microvm.exits import Interrupted, MmioRead, MmioWrite, PioRead, PioWrite, VcpuExit
from microvm.vmm.exit_counts import ExitCounts
from microvm.vmm.exit_path import MAX_PLANS, ExitPath

PLACES = 64


class Recorder(BusDevice):
    """Notes what is written, and answers with the offset."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


class ExitingVcpu:
    """Exits as it is told, and notes what its reads are completed with."""

    def __init__(self, exits: Iterable[VcpuExit]) -> None:
        self._exits: Iterator[VcpuExit] = iter(exits)
        self.answers: list[bytes] = []

    def run(self) -> VcpuExit:
        return next(self._exits, Interrupted())

    def complete_read(self, data: bytes) -> None:
        self.answers.append(data)


@pytest.fixture
def memory() -> Recorder:
    return Recorder()


@pytest.fixture
def ports() -> Recorder:
    return Recorder()


@pytest.fixture
def path(memory: Recorder, ports: Recorder) -> ExitPath:
    addresses, port_bus = Bus("address"), Bus("port")
    addresses.insert(0x1000, 8 * PLACES, memory)
    port_bus.insert(0, PLACES, ports)
    return ExitPath(addresses, port_bus, ExitCounts())


def test_exits_that_are_new_each_time_are_never_taken_for_one_another(
    path: ExitPath, memory: Recorder, ports: Recorder
) -> None:
    # Each is dropped before the next is made, which may then lie where it lay.
    rounds = range(5 * PLACES)
    vcpu = ExitingVcpu(
        exit_
        for i in rounds
        for exit_ in (
            MmioWrite(0x1000 + 8 * (i % PLACES), bytes([i % 251, 0, 0, 0])),
            PioWrite(i % PLACES, 1, bytes([i % 241])),
        )
    )
    assert path.run(vcpu) is None
    assert memory.written == [(8 * (i % PLACES), 4, i % 251) for i in rounds]
    assert ports.written == [(i % PLACES, 1, i % 241) for i in rounds]
    reading = ExitingVcpu(
        exit_
        for i in rounds
        for exit_ in (MmioRead(0x1000 + 8 * (i % PLACES), 2), PioRead(i % PLACES, 1))
    )
    assert path.run(reading) is None
    assert reading.answers == [
        answer
        for i in rounds
        for answer in ((8 * (i % PLACES)).to_bytes(2, "little"), bytes([i % PLACES]))
    ]


def test_an_exit_that_comes_again_is_served_and_counted_again(
    memory: Recorder, path: ExitPath
) -> None:
    again = MmioWrite(0x1000, b"\1\0\0\0")
    assert path.run(ExitingVcpu([again] * 3)) is None
    assert memory.written == [(0, 4, 1)] * 3
    assert path._counts.snapshot()["mmio-write", 0x1000] == 3


def test_what_is_remembered_of_exits_is_bounded(path: ExitPath) -> None:
    values = range(2 * MAX_PLANS)
    vcpu = ExitingVcpu(MmioWrite(0x1000, value.to_bytes(4, "little")) for value in values)
    assert path.run(vcpu) is None
    assert len(path._writes) <= MAX_PLANS
