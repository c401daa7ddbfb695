"""The transport: registers on the bus's side, runs on the device's. See the package.

Long, since every register reads or writes the one state that resets and activations change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from microvm.abc import Activation, ActiveQueue, BusDevice, IrqLine
from microvm.errors import QueueError
from microvm.virtio.fault_log import FaultLog
from microvm.virtio.features import DEVICE_TYPE_MASK, RING_FEATURES, VERSION_1
from microvm.virtio.mmio import registers
from microvm.virtio.mmio.signals import RunLine, Signals
from microvm.virtio.queue import QueueLayout, VirtQueue
from microvm.virtio.status import DeviceStatus

if TYPE_CHECKING:
    import trio

    from microvm._loop_calls import Call, LoopCalls
    from microvm.abc import GuestDoorbell, VirtioDevice
    from microvm.errors import GuestError
    from microvm.memory import GuestMemory
    from microvm.virtio.counts import SignalCounts
    from microvm.virtio.device_run import DeviceRun

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
_FROM_SETTING_UP: Final = frozenset({_FEATURES_OK, _DRIVER_OK})
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
        self._signals = Signals(irq)
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
        if offset >= registers.CONFIG:
            data = self._device.read_config(offset - registers.CONFIG, size)
            return int.from_bytes(data[:size], "little")
        reader = _READERS.get(offset) if size == 4 else None
        return reader(self) if reader is not None else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """As `BusDevice.write`. What is out of turn, of another width or unknown is dropped."""
        if offset >= registers.CONFIG:
            at = offset - registers.CONFIG
            driven = self._state in _CONFIGURABLE and not self._failed
            if driven or at in self._device.always_writable:
                data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
                self._device.write_config(at, data)
            return
        entry = _WRITERS.get(offset) if size == 4 else None
        if entry is not None:
            writer, states = entry
            if self._state in states and (not self._failed or offset == registers.STATUS):
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
            if value == _ACKNOWLEDGED:
                # A guest may be faster than its host's program. A device's configuration space is
                # there once its lifespan has begun; then calls are heard.
                self._calls.ask(lambda answered: answered())
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
            for index, queue in enumerate(self._queues):
                if not queue.ready:
                    break
                queues.append(self._open_queue(index, queue))
        except QueueError as error:
            for opened in queues:
                opened.release()
            self._fault(error)
            return
        handover = _Handover(features=self._driver_features, queues=tuple(queues))
        self._handed = handover
        self._calls.post(partial(self._begin, handover, fresh=True))

    def _open_queue(self, index: int, queue: _QueueRegisters) -> VirtQueue:
        try:
            layout = QueueLayout(
                size=queue.num,
                desc=queue.desc,
                avail=queue.driver,
                used=queue.device,
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

    @property
    def counts(self) -> SignalCounts:
        """Notifications and interrupts so far."""
        return self._signals.counts

    def config_changed(self) -> None:
        """Tell the driver that the configuration space has changed."""
        self._signals.config_changed()

    def _begin(self, handover: _Handover, *, fresh: bool) -> None:
        # Dropped at the end of the machine, and when a fault came before: it rests until a reset.
        if self._nursery is None or self._signals.needs_reset or handover is not self._handed:
            return
        from microvm.virtio.device_run import DeviceRun, RunDoorbell

        line = RunLine(self._signals)

        def activate() -> Activation:
            return Activation(
                features=handover.features,
                queues=tuple(
                    ActiveQueue(
                        queue=queue,
                        doorbell=RunDoorbell(doorbell, self._signals.counts),
                        irq=line,
                    )
                    for queue, doorbell in zip(handover.queues, self._doorbells, strict=False)
                ),
                memory=self._memory,
                config_changed=line.config_changed,
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
    registers.MAGIC_VALUE: lambda _: registers.MAGIC,
    registers.VERSION_REGISTER: lambda _: registers.VERSION,
    registers.DEVICE_ID: lambda transport: transport._device.device_id,
    registers.VENDOR_ID_REGISTER: lambda _: registers.VENDOR_ID,
    registers.DEVICE_FEATURES: VirtioMmioTransport._read_device_features,
    registers.QUEUE_NUM_MAX: VirtioMmioTransport._read_queue_num_max,
    registers.QUEUE_READY: VirtioMmioTransport._read_queue_ready,
    registers.INTERRUPT_STATUS: lambda transport: transport._signals.interrupt_status,
    registers.STATUS: VirtioMmioTransport._read_status,
    # No shared memory regions: a length of -1 says that there is none (4.2.2).
    registers.SHM_LEN_LOW: lambda _: _WORD,
    registers.SHM_LEN_HIGH: lambda _: _WORD,
    registers.SHM_BASE_LOW: lambda _: _WORD,
    registers.SHM_BASE_HIGH: lambda _: _WORD,
    registers.CONFIG_GENERATION: lambda transport: transport._signals.generation,
}


def _address_writer(name: str, shift: int) -> _Writer:
    return lambda transport, value: transport._write_queue_address(name, shift, value)


_WRITERS: Final[dict[int, tuple[_Writer, frozenset[int]]]] = {
    registers.DEVICE_FEATURES_SEL: (VirtioMmioTransport._write_device_features_sel, _ANY),
    registers.DRIVER_FEATURES_SEL: (VirtioMmioTransport._write_driver_features_sel, _ANY),
    registers.DRIVER_FEATURES: (VirtioMmioTransport._write_driver_features, _NEGOTIATING),
    registers.QUEUE_SEL: (VirtioMmioTransport._write_queue_sel, _ANY),
    registers.QUEUE_NUM: (VirtioMmioTransport._write_queue_num, _SETTING_UP),
    registers.QUEUE_READY: (
        VirtioMmioTransport._write_queue_ready,
        frozenset({_FEATURES_OK, _DRIVER_OK}),
    ),
    registers.QUEUE_NOTIFY: (VirtioMmioTransport._write_queue_notify, frozenset({_DRIVER_OK})),
    registers.INTERRUPT_ACK: (VirtioMmioTransport._write_interrupt_ack, _ANY),
    registers.STATUS: (VirtioMmioTransport._write_status, _ANY),
    registers.QUEUE_DESC_LOW: (_address_writer("desc", 0), _SETTING_UP),
    registers.QUEUE_DESC_HIGH: (_address_writer("desc", 32), _SETTING_UP),
    registers.QUEUE_DRIVER_LOW: (_address_writer("driver", 0), _SETTING_UP),
    registers.QUEUE_DRIVER_HIGH: (_address_writer("driver", 32), _SETTING_UP),
    registers.QUEUE_DEVICE_LOW: (_address_writer("device", 0), _SETTING_UP),
    registers.QUEUE_DEVICE_HIGH: (_address_writer("device", 32), _SETTING_UP),
}
"""Offset to what a write does, and the states in which it may come."""
