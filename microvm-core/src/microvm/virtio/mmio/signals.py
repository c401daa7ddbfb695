"""The words that the bus's side and the device's side of a transport both touch."""

from __future__ import annotations

import threading
from typing import Final

from microvm.abc import IrqLine
from microvm.virtio.counts import SignalCounts
from microvm.virtio.mmio.registers import INTERRUPT_CONFIG_CHANGE, INTERRUPT_USED_BUFFER

_GENERATION_BITS: Final = 0xFFFF_FFFF


class Signals:
    """The words that both sides touch, and the interrupt line. For any thread."""

    def __init__(self, line: IrqLine) -> None:
        self.counts = SignalCounts()
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
            self.counts.interrupts += 1
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
            self._generation = (self._generation + 1) & _GENERATION_BITS
        self.raise_interrupt(INTERRUPT_CONFIG_CHANGE)

    def reset(self) -> None:
        with self._lock:
            self._interrupt_status = 0
            self._needs_reset = False


class RunLine(IrqLine):
    """One run's ways to interrupt its driver; dead once the run is over."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self.live = True

    def trigger(self) -> None:
        """As `IrqLine.trigger`."""
        if self.live:
            self._signals.raise_interrupt(INTERRUPT_USED_BUFFER)

    def config_changed(self) -> None:
        """As `Activation.config_changed`."""
        if self.live:
            self._signals.config_changed()
