"""One machine below trio: memory, buses, devices, and a thread for each vCPU.

Built and started by any thread, without a loop: what the guest wants of the trio thread meanwhile
waits in `LoopCalls`. `VmmMachine` then takes it over. The order in which things go: vCPU threads
first, each with its vCPU; then the VM; then the memory that it was given.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

import attrs

from microvm._loop_calls import LoopCalls
from microvm.abc import TerminalDevice
from microvm.arch.x86_64 import layout
from microvm.arch.x86_64.board import MAX_VCPU_COUNT
from microvm.bus import Bus
from microvm.config import ConfigProblem, ConsoleDevice, MachineConfig
from microvm.consoles.hub import ConsoleHub, Send
from microvm.consoles.port_input import PortInput
from microvm.errors import BackendError, ConfigError, HypervisorCallError, MicrovmError
from microvm.memory import GuestMemory, host_mem_mib
from microvm.metrics import device_counters
from microvm.vmm import board_x86_64 as board
from microvm.vmm.console import GuestConsole
from microvm.vmm.end import End, EndKind
from microvm.vmm.exit_counts import merged
from microvm.vmm.vcpu_thread import VcpuThread

if TYPE_CHECKING:
    from microvm.abc import Hypervisor, MachinePlan, Vcpu, Vm
    from microvm.arch.x86_64.registers import RegisterValue
    from microvm.console_signs import Signs
    from microvm.metrics import DeviceCounters
    from microvm.plugins import BootProtocol
    from microvm.virtio.mmio import VirtioMmioTransport

log = logging.getLogger("microvm.vmm")

INSIST_EVERY_S: Final = 0.05
"""How often a vCPU that could not be kicked is kicked again."""


def _host_problems(config: MachineConfig, hypervisor: Hypervisor) -> list[ConfigProblem]:
    problems: list[ConfigProblem] = []
    max_vcpu_count = min(hypervisor.max_vcpu_count, MAX_VCPU_COUNT)
    if config.vcpu_count > max_vcpu_count:
        problems.append(
            ConfigProblem(
                "vcpu_count",
                f"a machine here may have {max_vcpu_count}, not {config.vcpu_count}.",
            )
        )
    host_mib = host_mem_mib()
    if config.mem_size_mib > host_mib:
        problems.append(
            ConfigProblem(
                "mem_size_mib", f"the host has {host_mib} MiB of memory, not {config.mem_size_mib}."
            )
        )
    return problems


_Hook = Callable[[], None]


def _nothing() -> None:
    return


def _leave(vcpu: Vcpu) -> None:
    """An application processor starts as its reset left it, when the boot vCPU wakes it."""


class Engine:
    """A machine, built and loaded; `start` lets it run. Made by `build`."""

    def __init__(self, plan: MachinePlan, vm: Vm, memory: GuestMemory) -> None:
        self.calls = LoopCalls()
        self.console = GuestConsole(ConsoleHub(self.calls.post), self._noticed)
        self.typed = PortInput(self.calls.post)
        self._plan = plan
        self._vm = vm
        self._memory = memory
        self._ports = Bus("port")
        self._addresses = Bus("address")
        callbacks = board.BoardCallbacks(
            output=self.console.feed,
            input_room=self.typed.on_room,
            power_off=lambda: self.end(End(kind=EndKind.POWER_OFF)),
            reset=lambda: self.end(End(kind=EndKind.RESET)),
            marked=self._marked,
        )
        uart = board.add_legacy_devices(vm, self._ports, self._addresses, callbacks)
        self.typed.connect(uart.feed)
        self.send_typed = self._join_terminal()
        self.transports: tuple[VirtioMmioTransport, ...] = tuple(
            board.add_virtio_device(
                index,
                attached.device,
                vm=vm,
                bus=self._addresses,
                memory=memory,
                calls=self.calls,
            )
            for index, attached in enumerate(plan.devices)
        )
        self.threads: tuple[VcpuThread, ...] = ()
        self._creating = threading.Lock()
        self._created: SimpleQueue[BaseException | None] = SimpleQueue()
        self._end_lock = threading.Lock()
        self._end: End | None = None
        self._live = 0
        self._on_signs: _Hook = _nothing
        self._on_ended: _Hook = _nothing

    def _join_terminal(self) -> Send:
        """Where the console's input goes; a virtio console's output joins the serial port's."""
        if self._plan.config.console.device is ConsoleDevice.VIRTIO:
            for attached in self._plan.devices:
                if isinstance(attached.device, TerminalDevice):
                    attached.device.follow(self.console.feed)
                    return attached.device.send
        return self.typed.send

    @classmethod
    def build(cls, plan: MachinePlan, hypervisor: Hypervisor, protocol: BootProtocol) -> Engine:
        """Create the VM and its memory, put the devices in place, load the kernel.

        Marks ``vm`` and ``load``.

        Raises:
            ConfigError: the board can't hold the machine; lists every problem.
            BackendError: the host or the hypervisor failed.
            ImageError: the kernel or initrd can't be used.
        """
        config = plan.config
        problems = [
            *board.problems_with(plan),
            *_host_problems(config, hypervisor),
        ]
        if problems:
            raise ConfigError("The machine can't be built as described:", problems=problems)
        with ExitStack() as undo:
            memory = GuestMemory.for_ranges(layout.ram_ranges(config.mem_size_mib << 20))
            undo.callback(memory.release)
            vm = hypervisor.create_vm(vcpu_count=config.vcpu_count)
            undo.callback(vm.close)
            for region in memory.regions:
                vm.map_memory(region)
            engine = cls(plan, vm, memory)
            plan.timeline.mark("vm")
            board.describe(memory, vcpu_count=config.vcpu_count, device_count=len(plan.devices))
            whole = attrs.evolve(plan, cmdline=board.whole_cmdline(plan))
            engine._make_threads(protocol.load(whole, memory))
            plan.timeline.mark("load")
            undo.pop_all()
        return engine

    def _make_threads(self, boot_registers: Mapping[str, RegisterValue]) -> None:
        def prepare_boot(vcpu: Vcpu) -> None:
            vcpu.set_registers(boot_registers)

        self.threads = tuple(
            VcpuThread(
                index,
                create=self._create_vcpu,
                prepare=prepare_boot if index == 0 else _leave,
                memory=self._addresses,
                ports=self._ports,
                owner=self,
            )
            for index in range(self._plan.config.vcpu_count)
        )

    def _create_vcpu(self, index: int) -> Vcpu:
        with self._creating:  # a `Vm` takes one call at a time
            return self._vm.create_vcpu(index)

    def start(self) -> None:
        """Create the vCPUs and let the guest run. Blocks for about a millisecond.

        Marks ``vcpus``. If it raises, `close` is still due.

        Raises:
            BackendError: a thread or a vCPU can't be had.
        """
        try:
            for thread in self.threads:
                self._live += 1
                try:
                    thread.start()
                except RuntimeError as error:
                    self._live -= 1
                    raise BackendError(
                        f"The host gives no thread for vCPU {thread.index}.",
                        remedy="Raise the limit on processes and threads (ulimit -u).",
                    ) from error
            failures = [self._created.get() for _ in self.threads]
            for failure in failures:
                if isinstance(failure, MicrovmError):
                    raise failure
                if failure is not None:
                    raise BackendError(f"A vCPU can't be created: {failure}") from failure
        except BaseException:
            self.end(End(kind=EndKind.HOST_ERROR, what="The vCPUs could not be created."))
            raise
        for thread in self.threads:
            thread.go()
        self._plan.timeline.mark("vcpus")

    def close(self) -> None:
        """End what runs and give everything back. Blocks: KVM takes some 20 ms to forget a VM."""
        self.end(End(kind=EndKind.ASKED))
        # A thread may wait for an answer of a loop that never came, or has gone.
        self.calls.close()
        for thread in self.threads:
            thread.join()
        self._vm.close()
        self._memory.release()

    # --- from any thread -----------------------------------------------------------------

    def end(self, end: End) -> None:
        """End the machine, for this reason if it is the first. From any thread."""
        with self._end_lock:
            first = self._end is None
            if first:
                self._end = end
        if first and (error := self._stop_threads()):
            log.error("A vCPU can't be stopped yet, which is tried until it can: %s", error)
            threading.Thread(target=self._insist, name="microvm insists", daemon=True).start()

    def _stop_threads(self) -> HypervisorCallError | None:
        """Tell each thread to end; what kept one from being told, if something did."""
        failed = None
        for thread in self.threads:
            try:
                thread.stop()
            except HypervisorCallError as error:
                failed = error
        return failed

    def _insist(self) -> None:
        """The host had no signal left. It will have one, and the guest may be spinning."""
        while self._stop_threads():
            time.sleep(INSIST_EVERY_S)

    @property
    def why_ended(self) -> End | None:
        """What ended the machine, or None while nothing has."""
        return self._end

    @property
    def device_counters(self) -> DeviceCounters:
        """As `RunningMachine.device_counters`."""
        counts = [transport.counts for transport in self.transports]
        return device_counters(self._plan.devices, counts)

    @property
    def exit_counts(self) -> Mapping[str, int]:
        """Exits of all vCPUs so far, by kind and address."""
        return merged(thread.counts for thread in self.threads)

    def vcpu_created(self, index: int, error: BaseException | None) -> None:
        """As `VcpuOwner.vcpu_created`."""
        self._created.put(error)

    def vcpu_ended(self, index: int) -> None:
        """As `VcpuOwner.vcpu_ended`."""
        self.calls.post(self._count_ended)

    def _marked(self, byte: int) -> None:
        """The guest says how far it has come: a phase of the boot. On a vCPU's thread."""
        now = time.monotonic_ns()
        self.calls.post(lambda: self._plan.timeline.mark(f"boot_timer_{byte}", at_ns=now))

    def _noticed(self, signs: Signs) -> None:
        self.calls.post(lambda: self._on_signs())

    # --- on the trio thread --------------------------------------------------------------

    def attend(self, *, on_signs: _Hook, on_ended: _Hook) -> None:
        """Who is told on the trio thread that the kernel has said something, and the end."""
        self._on_signs = on_signs
        self._on_ended = on_ended

    def _count_ended(self) -> None:
        self._live -= 1
        if self._live == 0:
            self._on_ended()
