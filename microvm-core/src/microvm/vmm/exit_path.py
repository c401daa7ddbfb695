"""A vCPU's exits, served: this is the path that every exit takes, and it is written for speed.

A guest leaves for the same few things again and again, and a hypervisor may give the same value
for the same exit each time. What an exit comes to (which range of which bus, at which offset) does
not change once the vCPUs run, so it is found once and remembered by the exit's identity: measured
on kvm_pvm, 12.4 us an exit become 11, where a loop in C that does nothing takes 7.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from microvm.exits import (
    Interrupted,
    MmioRead,
    MmioWrite,
    PioRead,
    PioWrite,
    VcpuExit,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from microvm.abc import Vcpu
    from microvm.bus import Bus
    from microvm.vmm.exit_counts import ExitCounts, Place

MAX_PLANS: Final = 1024
"""A boot has some hundred different exits; a hostile guest has as many as it likes."""


class ExitPath:
    """Serves one vCPU's exits, on its thread.

    Args:
        memory: The bus of addresses that are no RAM.
        ports: The bus of ports.
        counts: Where each exit is counted.
    """

    def __init__(self, memory: Bus, ports: Bus, counts: ExitCounts) -> None:
        self._memory = memory
        self._ports = ports
        self._counts = counts
        self._writes: dict[int, _Write] = {}
        self._reads: dict[int, _Read] = {}

    def run(self, vcpu: Vcpu) -> VcpuExit | None:
        """Run the guest and serve what the buses can.

        Returns:
            An exit that is no access, or None after a kick.
        """
        run, complete = vcpu.run, vcpu.complete_read
        write_plan, read_plan = self._writes.get, self._reads.get
        counts = self._counts.by_place
        while True:
            vcpu_exit = run()
            # Plans hold their exit, so that its identity is nobody else's.
            if write := write_plan(id(vcpu_exit)):
                _, place, lock, store, offset, size, value = write
                counts[place] += 1
                with lock:
                    store(offset, size, value)
            elif read := read_plan(id(vcpu_exit)):
                _, place, lock, load, offset, size, mask = read
                counts[place] += 1
                with lock:
                    value = load(offset, size)
                complete((value & mask).to_bytes(size, "little"))
            else:
                match vcpu_exit:
                    case MmioWrite() | MmioRead() | PioWrite() | PioRead():
                        self._serve(vcpu, vcpu_exit)
                    case Interrupted():
                        return None
                    case _:
                        self._counts.add(type(vcpu_exit).__name__.lower())
                        return vcpu_exit

    def _serve(self, vcpu: Vcpu, access: MmioWrite | MmioRead | PioWrite | PioRead) -> None:
        """Serve an access that there is no plan for, and make one if its like may come again."""
        match access:
            case MmioWrite(address, data):
                self._write("mmio-write", self._memory, access, address, len(data), data)
            case MmioRead(address, length):
                self._read(vcpu, "mmio-read", self._memory, access, address, length)
            case PioWrite(port, size, data) if len(data) == size:
                self._write("pio-write", self._ports, access, port, size, data)
            case PioWrite(port, size, data):
                self._counts.add("pio-write", port)
                self._ports.write_many(port, size, data)
            case PioRead(port, size, 1):
                self._read(vcpu, "pio-read", self._ports, access, port, size)
            case PioRead(port, size, count):
                self._counts.add("pio-read", port)
                vcpu.complete_read(self._ports.read_many(port, size, count))

    def _write(
        self, kind: str, bus: Bus, access: VcpuExit, address: int, size: int, data: bytes
    ) -> None:
        value = int.from_bytes(data, "little")
        self._counts.add(kind, address)
        found = bus.find(address, size)
        if found is None:
            return
        offset, store = address - found.base, found.device.write
        with found.lock:
            store(offset, size, value)
        place = (kind, address)
        if place in self._counts.by_place:
            if len(self._writes) >= MAX_PLANS:
                self._writes.clear()
            self._writes[id(access)] = (access, place, found.lock, store, offset, size, value)

    def _read(
        self, vcpu: Vcpu, kind: str, bus: Bus, access: VcpuExit, address: int, size: int
    ) -> None:
        self._counts.add(kind, address)
        found = bus.find(address, size)
        mask = (1 << 8 * size) - 1
        if found is None:
            vcpu.complete_read(mask.to_bytes(size, "little"))
            return
        offset, load = address - found.base, found.device.read
        with found.lock:
            value = load(offset, size)
        vcpu.complete_read((value & mask).to_bytes(size, "little"))
        place = (kind, address)
        if place in self._counts.by_place:
            if len(self._reads) >= MAX_PLANS:
                self._reads.clear()
            self._reads[id(access)] = (access, place, found.lock, load, offset, size, mask)


if TYPE_CHECKING:
    _Lock = AbstractContextManager[object]
    _Write = tuple[VcpuExit, Place, _Lock, Callable[[int, int, int], None], int, int, int]
    """The exit, where it is counted, the range's lock, the device's `write`, and its arguments."""
    _Read = tuple[VcpuExit, Place, _Lock, Callable[[int, int], int], int, int, int]
    """The same of `read`, and a mask for what it answers."""
