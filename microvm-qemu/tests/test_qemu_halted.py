"""CPUs that wait for what can't come."""

import pytest

from microvm_qemu._halted import all_halted

CPU = (
    "CPU#{n}\r\nRAX=0 RBX=0\r\nRIP=0 RFL={flags} [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT={halted}\r\n"
)


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [
        ([("00000046", 1)], True),
        ([("00000046", 1), ("00000002", 1)], True),
        ([("00000246", 1)], False),  # idle: an interrupt wakes it
        ([("00000046", 0)], False),
        ([("00000046", 1), ("00000046", 0)], False),
        ([("00000046", 1), ("00000246", 1)], False),
    ],
)
def test_halted_for_good_is_every_cpu_waiting_and_taking_no_interrupt(
    cpus: list[tuple[str, int]], expected: bool
) -> None:
    text = "".join(CPU.format(n=n, flags=f, halted=h) for n, (f, h) in enumerate(cpus))
    assert all_halted(text) is expected


def test_sixteen_bit_cpus_are_read_too() -> None:
    assert all_halted("EIP=0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n")


def test_registers_that_say_nothing_are_no_halt() -> None:
    assert not all_halted("")
    assert not all_halted("unknown command: 'info registers'\r\n")
