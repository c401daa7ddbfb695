"""How a guest ends: the keyboard controller, the ACPI registers, the chipset's reset."""

import pytest

from microvm.abc import BusDevice
from microvm.arch.x86_64.layout import ACPI_RESET_VALUE, ACPI_S5_SLP_TYP
from microvm.bus import Bus
from microvm.legacy.acpi_pm import RESET, SLEEP_CONTROL, SLEEP_STATUS, AcpiPm
from microvm.legacy.i8042 import I8042
from microvm.legacy.reset_control import ResetControl

SLP_EN, WAK_STS = 0x20, 0x80


class Calls:
    def __init__(self) -> None:
        self.made: list[str] = []

    def power_off(self) -> None:
        self.made.append("power off")

    def reset(self) -> None:
        self.made.append("reset")


@pytest.fixture
def calls() -> Calls:
    return Calls()


def resets(device: BusDevice, value: int, calls: Calls, offset: int = 0) -> bool:
    calls.made.clear()
    device.write(offset, 1, value)
    return calls.made == ["reset"]


# --- keyboard controller ---------------------------------------------------------------------


def test_a_command_resets_that_pulses_the_reset_line(calls: Calls) -> None:
    port = I8042(calls.reset).command
    assert [command for command in range(256) if resets(port, command, calls)] == [
        *(0xF0, 0xF2, 0xF4, 0xF6, 0xF8, 0xFA, 0xFC, 0xFE)
    ]


def test_the_data_port_does_nothing(calls: Calls) -> None:
    data = I8042(calls.reset).data
    data.write(0, 1, 0xFE)
    assert data.read(0, 1) == 0xFF
    assert calls.made == []


def test_linux_finds_no_controller_in_33_exits(calls: Calls) -> None:
    """i8042_controller_check and i8042_flush, drivers/input/serio/i8042.c."""
    i8042 = I8042(calls.reset)
    exits = flushed = 0
    while True:
        exits += 1
        if not i8042.command.read(0, 1) & 0x01:
            pytest.fail("a controller: it would be sent commands")
        if flushed == 16:
            break
        exits += 1
        i8042.data.read(0, 1)
        flushed += 1
    assert exits == 33


def test_reboot_k_does_not_wait(calls: Calls) -> None:
    """kb_wait, arch/x86/kernel/reboot.c: until the input buffer is empty."""
    i8042 = I8042(calls.reset)
    for _ in range(10):
        assert not i8042.command.read(0, 1) & 0x02
        i8042.command.write(0, 1, 0xFE)
    assert calls.made == ["reset"] * 10


# --- ACPI ------------------------------------------------------------------------------------


@pytest.fixture
def acpi(calls: Calls) -> AcpiPm:
    return AcpiPm(calls.power_off, calls.reset)


@pytest.mark.parametrize("sleep_type", range(8))
@pytest.mark.parametrize("enable", [0, SLP_EN])
def test_only_s5_with_slp_en_powers_off(
    acpi: AcpiPm, calls: Calls, sleep_type: int, enable: int
) -> None:
    acpi.write(SLEEP_CONTROL, 1, sleep_type << 2 | enable | 0xC3)
    assert calls.made == (["power off"] if enable and sleep_type == ACPI_S5_SLP_TYP else [])


def test_slp_en_is_for_writing_only(acpi: AcpiPm) -> None:
    acpi.write(SLEEP_CONTROL, 1, 0xFF)
    assert acpi.read(SLEEP_CONTROL, 1) == 0x1C


def test_a_sleep_that_there_is_not_is_over_at_once(acpi: AcpiPm, calls: Calls) -> None:
    """acpi_hw_extended_sleep clears WAK_STS, sleeps, and polls for it."""
    acpi.write(SLEEP_STATUS, 1, WAK_STS)
    assert acpi.read(SLEEP_STATUS, 1) == 0
    acpi.write(SLEEP_CONTROL, 1, 3 << 2 | SLP_EN)
    assert acpi.read(SLEEP_STATUS, 1) == WAK_STS
    acpi.write(SLEEP_STATUS, 1, WAK_STS)
    assert acpi.read(SLEEP_STATUS, 1) == 0
    assert calls.made == []


def test_the_reset_register_takes_one_value(acpi: AcpiPm, calls: Calls) -> None:
    taken = [value for value in range(256) if resets(acpi, value, calls, RESET)]
    assert taken == [ACPI_RESET_VALUE]
    assert acpi.read(RESET, 1) == 0


# --- 0xCF9 -----------------------------------------------------------------------------------


def test_every_write_with_rst_cpu_resets(calls: Calls) -> None:
    port = ResetControl(calls.reset)
    taken = [value for value in range(256) if resets(port, value, calls)]
    assert taken == [value for value in range(256) if value & 0x04]


@pytest.mark.parametrize("code", [0x06, 0x0E])
def test_reboot_pci_resets(calls: Calls, code: int) -> None:
    """native_machine_emergency_restart, arch/x86/kernel/reboot.c: BOOT_CF9_SAFE."""
    port = ResetControl(calls.reset)
    kept = port.read(0, 1) & ~code
    port.write(0, 1, kept | 2)
    assert calls.made == []
    assert port.read(0, 1) == 2
    port.write(0, 1, kept | code)
    assert calls.made == ["reset"]


@pytest.mark.parametrize(("address", "size"), [(0xCF8, 4), (0xCF8, 2), (0xCF9, 2)])
def test_pci_configuration_is_no_reset(calls: Calls, address: int, size: int) -> None:
    bus = Bus("port")
    bus.insert(0xCF9, 1, ResetControl(calls.reset))
    bus.write(address, size, 0xFFFF_FFFF)
    assert calls.made == []
