"""A hypervisor as a platform: from a plan to a running machine, and back to nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from microvm._groups import only_error
from microvm.abc import HostedPlatform, Hypervisor, MachinePlan, RunningMachine
from microvm.boot.files import kernel_head
from microvm.errors import ConfigError
from microvm.vmm import board_x86_64 as board

if TYPE_CHECKING:
    from microvm.config import MachineConfig
    from microvm.plugins import BootProtocol
    from microvm.vmm.engine import Engine

FindProtocol = Callable[[bytes, str], "BootProtocol | None"]


class HypervisorPlatform(HostedPlatform):
    """Builds machines on one hypervisor.

    Args:
        hypervisor: Where vCPUs come from.
        find_protocol: Finds who can boot a kernel, by its head and the architecture.
    """

    def __init__(self, hypervisor: Hypervisor, find_protocol: FindProtocol) -> None:
        self._hypervisor = hypervisor
        self._find_protocol = find_protocol
        self._prelaunched: dict[MachinePlan, Engine] = {}

    def kernel_cmdline(self, config: MachineConfig) -> Sequence[str]:
        """As `HostedPlatform.kernel_cmdline`: the board's words, then the hypervisor's."""
        return [*board.kernel_words(config), *self._hypervisor.kernel_cmdline(config)]

    @contextmanager
    def prelaunch(self, plan: MachinePlan) -> Iterator[None]:
        """As `HostedPlatform.prelaunch`: the guest boots, and waits for its devices' tasks."""
        self._prelaunched[plan] = self._launch(plan, self._protocol_for(plan))
        try:
            yield
        finally:
            unused = self._prelaunched.pop(plan, None)
            if unused is not None:
                unused.close()

    @asynccontextmanager
    async def start(self, plan: MachinePlan) -> AsyncIterator[RunningMachine]:
        """As `HostedPlatform.start`. Marks ``vm``, ``load`` and ``vcpus``."""
        import trio

        from microvm.vmm.machine import VmmMachine

        engine = self._prelaunched.pop(plan, None)
        if engine is None:
            protocol = self._protocol_for(plan)
            # Reading a kernel may take its time, and the loop has others to serve.
            engine = await trio.to_thread.run_sync(self._launch, plan, protocol)
        try:
            machine = VmmMachine(engine)
            try:
                async with trio.open_nursery() as nursery:
                    try:
                        # Not `nursery.start`: cancelled, it would wait for a task that isn't.
                        nursery.start_soon(machine.run)
                        await machine.served()
                        yield machine
                    finally:
                        with trio.CancelScope(shield=True):
                            await machine.kill()
            except BaseExceptionGroup as group:
                raise only_error(group) from None
        finally:
            # The kernel takes some 20 ms to forget a VM.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(engine.close)

    def _launch(self, plan: MachinePlan, protocol: BootProtocol) -> Engine:
        from microvm.vmm.engine import Engine

        engine = Engine.build(plan, self._hypervisor, protocol)
        try:
            engine.start()
        except BaseException:
            engine.close()
            raise
        return engine

    def _protocol_for(self, plan: MachinePlan) -> BootProtocol:
        protocol = self._find_protocol(kernel_head(plan.kernel), self._hypervisor.arch)
        if protocol is None:
            raise ConfigError(
                f"Nothing here knows how to boot {plan.kernel} on {self._hypervisor.arch}.",
                remedy="Give an uncompressed ELF kernel (vmlinux) or a bzImage, or install a "
                "plugin that implements microvm_boot_protocol for it.",
            )
        return protocol
