"""What is printed and typed: on the serial port, and on a virtio console beside it."""

import trio

from microvm import BootSource, ConsoleConfig, Machine, MachineConfig, OutcomeReason
from microvm.abc import TerminalDevice
from microvm.arch.x86_64 import layout
from microvm.exits import PioRead, PioWrite
from microvm.plugins import DeviceFactory
from microvm.testing.hypervisor import FakeHypervisor, Spin
from microvm.testing.mmio_bench import UpperDevice
from microvm.testing.plugins import plugin_manager

from .scripted_machine import I8042_RESET, WITHIN_S, guest, printed, scripted_backend


def echoing(vcpu):
    """Prints what it reads on its serial port, until that is a line."""
    yield PioWrite(layout.COM1 + 2, 1, b"\x01")  # clears the FIFO, hence before the prompt
    yield from printed("> ")
    while True:
        status = yield PioRead(layout.COM1 + 5, 1)
        if status[0] & 1:
            byte = yield PioRead(layout.COM1, 1)
            yield PioWrite(layout.COM1, 1, byte)
            if byte == b"\n":
                yield I8042_RESET


async def test_what_is_typed_is_read_at_the_serial_port(machine_on, leaves_nothing) -> None:
    line = b"a line that is longer than the port's FIFO holds at once\n"
    with trio.fail_after(WITHIN_S):
        async with machine_on(echoing) as machine, await machine.open_console() as console:
            got = b""
            while got != b"> ":
                got += await console.receive_some()
            await console.send_all(line)
            async for chunk in console:
                got += chunk
            assert (await machine.wait()).reason is OutcomeReason.RESET
            counters = machine.metrics.console
    assert got == b"> " + line
    assert counters == {
        "printed_bytes": len(got),
        "typed_bytes": len(line),
        "dropped_bytes": 0,
    }


async def test_a_flood_past_a_reader_that_has_stopped_holds_up_no_vcpu(machine_on) -> None:
    """Row 62: the guest comes to its end, and what the reader missed is counted."""
    block = PioWrite(layout.COM1, 1, b"x" * 65536)

    def floods(vcpu):
        while not (yield PioRead(layout.COM1 + 5, 1))[0] & 1:
            pass
        for _ in range(64):
            yield block
        yield I8042_RESET

    with trio.fail_after(WITHIN_S):
        async with machine_on(floods) as machine, await machine.open_console() as console:
            await console.send_all(b"go")
            assert (await machine.wait()).reason is OutcomeReason.RESET
            counters = machine.metrics.console
    assert counters["printed_bytes"] == 64 * 65536
    assert counters["dropped_bytes"] > 3 * 1024 * 1024


class EchoTerminal(UpperDevice, TerminalDevice):
    """A console that prints what is typed, as a guest's driver would have it do."""

    def follow(self, output) -> None:
        self.output = output

    async def send(self, data: bytes) -> None:
        self.output(data)


async def test_a_virtio_console_is_the_machines_beside_the_serial_port(kernel) -> None:
    hypervisor = FakeHypervisor(guest(*printed("early\n"), Spin()))
    manager = plugin_manager(
        scripted_backend(hypervisor),
        DeviceFactory(
            name="console", summary="one", virtio_id=3, create=lambda options: EchoTerminal()
        ),
    )
    config = MachineConfig(
        backend="scripts",
        boot=BootSource(kernel=kernel),
        vsock=None,
        provisioners=(),
        console=ConsoleConfig(device="virtio"),
    )
    with trio.fail_after(WITHIN_S):
        async with Machine(config, plugins=manager) as machine:
            assert "console=hvc0" in machine._assembly.plan.cmdline.split()
            assert "console=ttyS0" not in machine._assembly.plan.cmdline
            async with await machine.open_console() as console:
                got = b""
                while got != b"early\n":
                    got += await console.receive_some()
                await console.send_all(b"typed")
                while got != b"early\ntyped":
                    got += await console.receive_some()
            assert "console0" in machine.metrics.devices
            assert machine.console_tail == ("early", "typed")
