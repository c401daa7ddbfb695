"""Registers as values, to and from the structures of KVM_GET_REGS and KVM_GET_SREGS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from microvm.arch.x86_64.registers import (
    CONTROL_REGISTERS,
    GENERAL_REGISTERS,
    SEGMENT_REGISTERS,
    TABLE_REGISTERS,
    DescriptorTable,
    RegisterValue,
    Segment,
)

SPECIAL_REGISTERS: Final = frozenset((*CONTROL_REGISTERS, *SEGMENT_REGISTERS, *TABLE_REGISTERS))
"""Those of struct kvm_sregs; the others are in struct kvm_regs."""

_SEGMENT_FIELDS: Final = {
    "selector": "selector",
    "base": "base",
    "limit": "limit",
    "type": "type",
    "s": "s",
    "dpl": "dpl",
    "present": "present",
    "avl": "avl",
    "long": "l",
    "db": "db",
    "granularity": "g",
}
"""Field of `Segment` to field of struct kvm_segment."""


def check_names(values: Mapping[str, RegisterValue]) -> None:
    """Make sure that each name is a register's and each value of its kind.

    Raises:
        ValueError: one is not.
    """
    for name, value in values.items():
        if name in SEGMENT_REGISTERS:
            fits = isinstance(value, Segment)
        elif name in TABLE_REGISTERS:
            fits = isinstance(value, DescriptorTable)
        elif name in GENERAL_REGISTERS or name in CONTROL_REGISTERS:
            fits = isinstance(value, int)
        else:
            raise ValueError(f"{name} is no register of x86_64.")
        if not fits:
            raise ValueError(f"{value!r} is no value for {name}.")


def load(regs: Any, sregs: Any) -> dict[str, RegisterValue]:
    """All registers out of struct kvm_regs and struct kvm_sregs."""
    values: dict[str, RegisterValue] = {name: getattr(regs, name) for name in GENERAL_REGISTERS}
    for name in CONTROL_REGISTERS:
        values[name] = getattr(sregs, name)
    for name in SEGMENT_REGISTERS:
        raw = getattr(sregs, name)
        values[name] = Segment(
            **{field: getattr(raw, theirs) for field, theirs in _SEGMENT_FIELDS.items()}
        )
    for name in TABLE_REGISTERS:
        raw = getattr(sregs, name)
        values[name] = DescriptorTable(base=raw.base, limit=raw.limit)
    return values


def store(structure: Any, values: Mapping[str, RegisterValue]) -> None:
    """Write values into the structure that holds them; the others stay.

    Raises:
        ValueError: a value has more bits than its register.
    """
    for name, value in values.items():
        try:
            _store(structure, name, value)
        except OverflowError as error:
            raise ValueError(f"{name} can't hold {value!r}.") from error


def _store(structure: Any, name: str, value: RegisterValue) -> None:
    if isinstance(value, int):
        setattr(structure, name, value)
        return
    raw = getattr(structure, name)
    if isinstance(value, Segment):
        for field, theirs in _SEGMENT_FIELDS.items():
            setattr(raw, theirs, getattr(value, field))
        # What is not present can't be used. The hardware keeps a bit of its own for it.
        raw.unusable = 0 if value.present else 1
    else:
        raw.base, raw.limit = value.base, value.limit
