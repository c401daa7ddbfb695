"""virtio over memory-mapped registers (virtio 1.2, 4.2 Virtio Over MMIO).

Who owns what. The registers belong to the bus: the vCPUs' threads, one at a time, under the
range's lock. At DRIVER_OK the queues are made and handed to the device's task on the trio thread,
which has them alone until its run ends. Both sides touch three words only (the interrupt status,
"needs reset" and the configuration's generation), which have a lock of their own, `_Signals`,
that nobody holds for longer than it takes to set a bit.

The one rendezvous is a reset: when the driver's write of 0 to Status has returned, the device
must no longer touch the guest's memory (2.4.1, 4.2.3.1), so the vCPU's thread waits for the run
to end. It holds the bus range's lock meanwhile. Hence the rule that keeps this free of deadlock:
*the device's side never takes the bus lock*, neither to interrupt nor to report a fault, and the
trio thread never blocks on a vCPU (`microvm._loop_calls`).

A driver moves through the states of `_NEXT`, one bit at a time (3.1.1 Driver Requirements: Device
Initialization). Each register can be written in some of them, see `_WRITERS`; what comes out of
turn is dropped. What Status reads is the driver's state and, or-ed to it, NEEDS_RESET.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from microvm.abc import Activation, ActiveQueue, BusDevice, IrqLine
from microvm.errors import QueueError
from microvm.virtio.fault_log import FaultLog
from microvm.virtio.features import DEVICE_TYPE_MASK, RING_FEATURES, VERSION_1
from microvm.virtio.queue import QueueLayout, VirtQueue
from microvm.virtio.status import DeviceStatus

if TYPE_CHECKING:
    import trio

    from microvm._loop_calls import Call, LoopCalls
    from microvm.abc import GuestDoorbell, VirtioDevice
    from microvm.errors import GuestError
    from microvm.memory import GuestMemory
    from microvm.virtio.device_run import DeviceRun

MAGIC: Final = 0x7472_6976
"""``virt``."""
VERSION: Final = 2
VENDOR_ID: Final = 0

# 4.2.2 MMIO Device Register Layout.
MAGIC_VALUE: Final = 0x000
VERSION_REGISTER: Final = 0x004
DEVICE_ID: Final = 0x008
VENDOR_ID_REGISTER: Final = 0x00C
DEVICE_FEATURES: Final = 0x010
DEVICE_FEATURES_SEL: Final = 0x014
DRIVER_FEATURES: Final = 0x020
DRIVER_FEATURES_SEL: Final = 0x024
QUEUE_SEL: Final = 0x030
QUEUE_NUM_MAX: Final = 0x034
QUEUE_NUM: Final = 0x038
QUEUE_READY: Final = 0x044
QUEUE_NOTIFY: Final = 0x050
INTERRUPT_STATUS: Final = 0x060
INTERRUPT_ACK: Final = 0x064
STATUS: Final = 0x070
QUEUE_DESC_LOW: Final = 0x080
QUEUE_DESC_HIGH: Final = 0x084
QUEUE_DRIVER_LOW: Final = 0x090
QUEUE_DRIVER_HIGH: Final = 0x094
QUEUE_DEVICE_LOW: Final = 0x0A0
QUEUE_DEVICE_HIGH: Final = 0x0A4
SHM_LEN_LOW: Final = 0x0B0
SHM_LEN_HIGH: Final = 0x0B4
SHM_BASE_LOW: Final = 0x0B8
SHM_BASE_HIGH: Final = 0x0BC
CONFIG_GENERATION: Final = 0x0FC
CONFIG: Final = 0x100
"""The device configuration space, from here on: accesses of any width."""

INTERRUPT_USED_BUFFER: Final = 1
INTERRUPT_CONFIG_CHANGE: Final = 2

_WORD: Final = 0xFFFF_FFFF

# --- states ----------------------------------------------------------------------------------

_RESET: Final = 0
_ACKNOWLEDGED: Final = int(DeviceStatus.ACKNOWLEDGE)
_DRIVER: Final = _ACKNOWLEDGED | DeviceStatus.DRIVER
_FEATURES_OK: Final = _DRIVER | DeviceStatus.FEATURES_OK
_DRIVER_OK: Final = _FEATURES_OK | DeviceStatus.DRIVER_OK
_NEXT: Final = {
    _RESET: _ACKNOWLEDGED,
    _ACKNOWLEDGED: _DRIVER,
    _DRIVER: _FEATURES_OK,
    _FEATURES_OK: _DRIVER_OK,
}
"""From each state the one that a driver may write next; FAILED and 0 it may write in any."""

_ANY: Final = frozenset({_RESET, _ACKNOWLEDGED, _DRIVER, _FEATURES_OK, _DRIVER_OK})
_NEGOTIATING: Final = frozenset({_DRIVER})
_SETTING_UP: Final = frozenset({_FEATURES_OK})
_CONFIGURABLE: Final = frozenset({_DRIVER, _FEATURES_OK, _DRIVER_OK})


@attrs.define
class _QueueRegisters:
    """What the driver has said of one queue."""

    num_max: int
    num: int = 0
    ready: bool = False
    desc: int = 0
    driver: int = 0
    device: int = 0


class _Signals:
    """The words that both sides touch, and the interrupt line. For any thread."""

    def __init__(self, line: IrqLine) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._interrupt_status = 0
        self._needs_reset = False
        self._generation = 0

    @property
    def interrupt_status(self) -> int:
        return self._interrupt_status

    @property
    def needs_reset(self) -> bool:
        return self._needs_reset

    @property
    def generation(self) -> int:
        return self._generation

    def raise_interrupt(self, bit: int) -> None:
        with self._lock:
            self._interrupt_status |= bit
        self._line.trigger()

    def acknowledge(self, bits: int) -> None:
        with self._lock:
            self._interrupt_status &= ~bits

    def need_reset(self, *, tell: bool) -> None:
        """2.1.2: a device that needs a reset says so, and tells a driver that it has."""
        self._needs_reset = True
        if tell:
            self.raise_interrupt(INTERRUPT_CONFIG_CHANGE)

    def config_changed(self) -> None:
        with self._lock:
            self._generation = (self._generation + 1) & _WORD
        self.raise_interrupt(INTERRUPT_CONFIG_CHANGE)

    def reset(self) -> None:
        with self._lock:
            self._interrupt_status = 0
            self._needs_reset = False


class _UsedBufferLine(IrqLine):
    """One run's way to interrupt its driver; dead once the run is over."""

    def __init__(self, signals: _Signals) -> None:
        self._signals = signals
        self.live = True

    def trigger(self) -> None:
        """As `IrqLine.trigger`."""
        if self.live:
            self._signals.raise_interrupt(INTERRUPT_USED_BUFFER)


@attrs.frozen(kw_only=True, eq=False)
class _Handover:
    """What goes from the bus's side to the device's at DRIVER_OK."""

    features: int
    queues: tuple[VirtQueue, ...]


class VirtioMmioTransport(BusDevice):
    """A virtio device's registers, and the life of its runs.

    `read` and `write` are for the vCPUs' threads, everything else for the trio thread. Hold
    `serve` open while vCPUs run.

    Args:
        device: The device. Its `read_config` and `write_config` are called by vCPU threads.
        memory: The guest's RAM.
        irq: The device's interrupt line.
        doorbells: One for each queue of the device, rung by stores to QueueNotify.
        calls: The way to the trio thread.
    """

    def __init__(
        self,
        device: VirtioDevice,
        *,
        memory: GuestMemory,
        irq: IrqLine,
        doorbells: Sequence[GuestDoorbell],
        calls: LoopCalls,
    ) -> None:
        self._device = device
        self._memory = memory
        self._doorbells = tuple(doorbells)
        self._calls = calls
        self._signals = _Signals(irq)
        self._offered = device.features & DEVICE_TYPE_MASK | RING_FEATURES
        self._faults = FaultLog(device)
        self._nursery: trio.Nursery | None = None
        """Where runs and resets go: there while they may begin."""
        self._late_resets: list[Call] | None = None
        """While `serve` is on its way out: what answers the resets that have come since."""
        self._run: DeviceRun | None = None
        self._handed: _Handover | None = None
        self._resting: _Handover | None = None
        """What `quiesce` has taken the device from, for `resume` to give back."""
        # The registers:
        self._state = _RESET
        self._failed = False
        self._device_features_sel = 0
        self._driver_features_sel = 0
        self._driver_features = 0
        self._queue_sel = 0
        self._queues: list[_QueueRegisters] = []
        self._clear_registers()

    def _clear_registers(self) -> None:
        self._state = _RESET
        self._failed = False
        self._device_features_sel = self._driver_features_sel = self._driver_features = 0
        self._queue_sel = 0
        self._queues = [_QueueRegisters(size) for size in self._device.queue_max_sizes]

    # --- the bus's side --------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """As `BusDevice.read`. Registers are of 32 bits; any other access reads 0 (4.2.2.2)."""
        if offset >= CONFIG:
            data = self._device.read_config(offset - CONFIG, size)
            return int.from_bytes(data[:size], "little")
        reader = _READERS.get(offset) if size == 4 else None
        return reader(self) if reader is not None else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """As `BusDevice.write`. What is out of turn, of another width or unknown is dropped."""
        if offset >= CONFIG:
            if self._state in _CONFIGURABLE and not self._failed:
                data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
                self._device.write_config(offset - CONFIG, data)
            return
        entry = _WRITERS.get(offset) if size == 4 else None
        if entry is not None:
            writer, states = entry
            if self._state in states and (not self._failed or offset == STATUS):
                writer(self, value & _WORD)

    def _read_device_features(self) -> int:
        selected = self._device_features_sel
        return self._offered >> 32 * selected & _WORD if selected < 2 else 0

    def _read_status(self) -> int:
        failed = DeviceStatus.FAILED if self._failed else 0
        return self._state | failed | (DeviceStatus.NEEDS_RESET if self._signals.needs_reset else 0)

    def _selected(self) -> _QueueRegisters | None:
        """The queue that QueueSel names, if there is one."""
        return self._queues[self._queue_sel] if self._queue_sel < len(self._queues) else None

    def _read_queue_num_max(self) -> int:
        queue = self._selected()
        return queue.num_max if queue is not None else 0

    def _read_queue_ready(self) -> int:
        queue = self._selected()
        return int(queue is not None and queue.ready)

    def _write_device_features_sel(self, value: int) -> None:
        self._device_features_sel = value

    def _write_driver_features_sel(self, value: int) -> None:
        self._driver_features_sel = value

    def _write_driver_features(self, value: int) -> None:
        selected = self._driver_features_sel
        if selected < 2:
            others = self._driver_features & ~(_WORD << 32 * selected)
            self._driver_features = others | value << 32 * selected
        elif value:
            # A bit that nobody can have offered: remembered, so that FEATURES_OK is refused.
            self._driver_features |= 1 << 64

    def _write_queue_sel(self, value: int) -> None:
        self._queue_sel = value

    def _write_queue_num(self, value: int) -> None:
        queue = self._selected()
        if queue is not None and not queue.ready:
            queue.num = value

    def _write_queue_ready(self, value: int) -> None:
        queue = self._selected()
        if queue is None:
            return
        if self._state == _DRIVER_OK:
            # Taking one queue back by itself is VIRTIO_F_RING_RESET, which is not offered. But a
            # driver that does must find it quiet (4.2.2.1), and so the whole device rests.
            if value == 0:
                self._take_back()
                queue.ready = False
            return
        # A size that the queue can't have leaves it not ready, for the driver to see.
        good = 0 < queue.num <= queue.num_max and not queue.num & (queue.num - 1)
        queue.ready = bool(value & 1) and good

    def _write_queue_address(self, name: str, shift: int, value: int) -> None:
        queue = self._selected()
        if queue is not None and not queue.ready:
            kept = getattr(queue, name) & ~(_WORD << shift)
            setattr(queue, name, kept | value << shift)

    def _write_queue_notify(self, value: int) -> None:
        """A ring that the hypervisor did not take: where it can't, or of no queue."""
        if value < len(self._doorbells):
            self._doorbells[value].ring()

    def _write_interrupt_ack(self, value: int) -> None:
        self._signals.acknowledge(value)

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._reset()
            return
        if self._failed:
            return
        # A driver may or its next bit to what it has read, and that has NEEDS_RESET in it.
        value &= ~int(DeviceStatus.NEEDS_RESET)
        if value & DeviceStatus.FAILED and value & ~int(DeviceStatus.FAILED) == self._state:
            self._failed = True
        elif value == _NEXT.get(self._state):
            if value == _FEATURES_OK and not self._features_acceptable():
                return
            self._state = value
            if value == _DRIVER_OK:
                self._hand_over()

    def _features_acceptable(self) -> bool:
        chosen = self._driver_features
        return not chosen & ~self._offered and bool(chosen & VERSION_1)

    def _hand_over(self) -> None:
        """Make the queues, and give them to the device's task."""
        queues: list[VirtQueue] = []
        try:
            for index, registers in enumerate(self._queues):
                if not registers.ready:
                    break
                queues.append(self._open_queue(index, registers))
        except QueueError as error:
            for queue in queues:
                queue.release()
            self._fault(error)
            return
        handover = _Handover(features=self._driver_features, queues=tuple(queues))
        self._handed = handover
        self._calls.post(partial(self._begin, handover, fresh=True))

    def _open_queue(self, index: int, registers: _QueueRegisters) -> VirtQueue:
        try:
            layout = QueueLayout(
                size=registers.num,
                desc=registers.desc,
                avail=registers.driver,
                used=registers.device,
            )
            return VirtQueue(self._memory, layout, features=self._driver_features)
        except QueueError as error:
            raise QueueError(f"Queue {index}: {error.message}") from None

    def _reset(self) -> None:
        """The rendezvous: when this returns, the device has nothing of the guest's any more."""
        self._take_back()
        self._clear_registers()
        self._signals.reset()

    def _take_back(self) -> None:
        if self._handed is not None:
            self._calls.ask(self._begin_reset)
            self._handed = None

    # --- the device's side -----------------------------------------------------------------

    # trio is imported where it is used: a guest may run before a program has imported it.

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        """Run the device whenever its driver has it in use, until cancelled.

        When it returns, the run has ended and the device has been told to forget its guest. vCPUs
        may run meanwhile: no run begins any more, and a reset waits for the end of the last one.
        """
        import trio

        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None
                    self._late_resets = []
                    with trio.CancelScope(shield=True):
                        await self._end_run()
        finally:
            handed, self._handed = self._handed, None
            if handed is not None:
                _release(handed)
            late, self._late_resets = self._late_resets or [], None
            for answered in late:
                answered()
            self._device.reset()

    async def quiesce(self) -> None:
        """End the run, but keep the queues: nothing touches the guest's memory until `resume`.

        Call it while no vCPU runs.
        """
        if self._run is not None:
            self._resting = self._handed
        await self._end_run()

    def resume(self) -> None:
        """Let the device go on where `quiesce` left it, if it did."""
        resting, self._resting = self._resting, None
        if resting is not None and self._run is None:
            self._begin(resting, fresh=False)

    def config_changed(self) -> None:
        """Tell the driver that the configuration space has changed."""
        self._signals.config_changed()

    def _begin(self, handover: _Handover, *, fresh: bool) -> None:
        # Dropped at the end of the machine, and when a fault came before: it rests until a reset.
        if self._nursery is None or self._signals.needs_reset or handover is not self._handed:
            return
        from microvm.virtio.device_run import DeviceRun, RunDoorbell

        line = _UsedBufferLine(self._signals)

        def activate() -> Activation:
            return Activation(
                features=handover.features,
                queues=tuple(
                    ActiveQueue(queue=queue, doorbell=RunDoorbell(doorbell), irq=line)
                    for queue, doorbell in zip(handover.queues, self._doorbells, strict=False)
                ),
            )

        def deactivate() -> None:
            line.live = False
            for queue in handover.queues:
                queue.rewind()

        self._run = DeviceRun(
            self._device,
            activate=activate,
            deactivate=deactivate,
            fresh=fresh,
            report=self._fault,
        )
        self._nursery.start_soon(self._run.drive)

    def _begin_reset(self, answered: Call) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._end_for_reset, answered)
        elif self._late_resets is not None:
            self._late_resets.append(answered)
        else:
            answered()

    async def _end_for_reset(self, answered: Call) -> None:
        import trio

        try:
            # Also when the machine ends: the driver was promised a quiet device.
            with trio.CancelScope(shield=True):
                await self._end_run()
            if self._handed is not None:
                _release(self._handed)
        finally:
            answered()

    async def _end_run(self) -> None:
        if self._run is not None:
            await self._run.stop()
            self._run = None

    def _fault(self, error: GuestError) -> None:
        """The driver broke a rule: the device rests until it is reset. From either side."""
        self._faults.report(error)
        self._signals.need_reset(tell=True)


def _release(handover: _Handover) -> None:
    for queue in handover.queues:
        queue.release()


_Reader = Callable[[VirtioMmioTransport], int]
_Writer = Callable[[VirtioMmioTransport, int], None]

_READERS: Final[dict[int, _Reader]] = {
    MAGIC_VALUE: lambda _: MAGIC,
    VERSION_REGISTER: lambda _: VERSION,
    DEVICE_ID: lambda transport: transport._device.device_id,
    VENDOR_ID_REGISTER: lambda _: VENDOR_ID,
    DEVICE_FEATURES: VirtioMmioTransport._read_device_features,
    QUEUE_NUM_MAX: VirtioMmioTransport._read_queue_num_max,
    QUEUE_READY: VirtioMmioTransport._read_queue_ready,
    INTERRUPT_STATUS: lambda transport: transport._signals.interrupt_status,
    STATUS: VirtioMmioTransport._read_status,
    # No shared memory regions: a length of -1 says that there is none (4.2.2).
    SHM_LEN_LOW: lambda _: _WORD,
    SHM_LEN_HIGH: lambda _: _WORD,
    SHM_BASE_LOW: lambda _: _WORD,
    SHM_BASE_HIGH: lambda _: _WORD,
    CONFIG_GENERATION: lambda transport: transport._signals.generation,
}


def _address_writer(name: str, shift: int) -> _Writer:
    return lambda transport, value: transport._write_queue_address(name, shift, value)


_WRITERS: Final[dict[int, tuple[_Writer, frozenset[int]]]] = {
    DEVICE_FEATURES_SEL: (VirtioMmioTransport._write_device_features_sel, _ANY),
    DRIVER_FEATURES_SEL: (VirtioMmioTransport._write_driver_features_sel, _ANY),
    DRIVER_FEATURES: (VirtioMmioTransport._write_driver_features, _NEGOTIATING),
    QUEUE_SEL: (VirtioMmioTransport._write_queue_sel, _ANY),
    QUEUE_NUM: (VirtioMmioTransport._write_queue_num, _SETTING_UP),
    QUEUE_READY: (VirtioMmioTransport._write_queue_ready, frozenset({_FEATURES_OK, _DRIVER_OK})),
    QUEUE_NOTIFY: (VirtioMmioTransport._write_queue_notify, frozenset({_DRIVER_OK})),
    INTERRUPT_ACK: (VirtioMmioTransport._write_interrupt_ack, _ANY),
    STATUS: (VirtioMmioTransport._write_status, _ANY),
    QUEUE_DESC_LOW: (_address_writer("desc", 0), _SETTING_UP),
    QUEUE_DESC_HIGH: (_address_writer("desc", 32), _SETTING_UP),
    QUEUE_DRIVER_LOW: (_address_writer("driver", 0), _SETTING_UP),
    QUEUE_DRIVER_HIGH: (_address_writer("driver", 32), _SETTING_UP),
    QUEUE_DEVICE_LOW: (_address_writer("device", 0), _SETTING_UP),
    QUEUE_DEVICE_HIGH: (_address_writer("device", 32), _SETTING_UP),
}
"""Offset to what a write does, and the states in which it may come."""
