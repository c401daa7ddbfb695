"""A guest of a few dozen instructions, to find out what this KVM can run.

That /dev/kvm opens and makes VMs says nothing: on a host without virtualization of its own there
is a KVM (kvm_pvm) that runs kernels made for it, and emulates any other one instruction at a time,
as far as its emulator goes. A stock kernel dies there within its first thousand instructions.

So the guest does in 64-bit mode what every kernel does sooner or later: `LONG_MODE`, each piece on
its own. Where one of them fails, a second guest in 16-bit mode shows whether anything runs at all,
and how fast.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs

from microvm.arch.x86_64.registers import (
    CR4_OSFXSR,
    CR4_PAE,
    RFLAGS_RESERVED,
    DescriptorTable,
    RegisterValue,
    Segment,
)
from microvm.boot.x86.entry import long_mode_entry
from microvm.boot.x86.gdt import CODE_SELECTOR
from microvm.exits import InternalError, Interrupted, PioWrite, Shutdown, VcpuExit
from microvm.memory import GuestMemory

if TYPE_CHECKING:
    from microvm.abc import Hypervisor, Vcpu

BOUND_S: Final = 0.5
"""A guest that has not answered by then is ended: it would take 5 ms at 10,000 instructions/s."""

PORT: Final = 0xE9
ANSWER: Final = 42

_MEMORY_BYTES: Final = 0x1_0000
# None of these is where `long_mode_entry` has its tables.
_IDT: Final = 0x5000
_CODE, _HANDLER, _SCRATCH, _STACK = 0x6000, 0x6800, 0x7000, 0x8000
_VECTOR: Final = 0x20


class Piece(NamedTuple):
    """A few instructions that end with `ANSWER` on `PORT`."""

    name: str
    code: bytes


LONG_MODE: Final = (
    Piece(
        "popcnt",
        bytes.fromhex(
            "b8 ff ff ff ff"  #       mov eax, 0xffffffff
            "f3 0f b8 c0"  #          popcnt eax, eax        (32)
            "83 c0 0a"  #             add eax, 10
            "e6 e9"  #                out 0xe9, al
        ),
    ),
    Piece(
        "SSE2",
        bytes.fromhex(
            "b8 15 00 00 00"  #       mov eax, 21
            "66 0f 6e c0"  #          movd xmm0, eax
            "66 0f fe c0"  #          paddd xmm0, xmm0
            "66 0f 7e c0"  #          movd eax, xmm0
            "e6 e9"  #                out 0xe9, al
        ),
    ),
    Piece(
        "cmpxchg16b",
        bytes.fromhex(
            "be 00 70 00 00"  #       mov esi, 0x7000        _SCRATCH, which holds zeros
            "31 c0"  #                xor eax, eax
            "31 d2"  #                xor edx, edx
            "bb 2a 00 00 00"  #       mov ebx, 42
            "31 c9"  #                xor ecx, ecx
            "f0 48 0f c7 0e"  #       lock cmpxchg16b [rsi]
            "8a 06"  #                mov al, [rsi]
            "e6 e9"  #                out 0xe9, al
        ),
    ),
    Piece(
        "interrupt",
        bytes.fromhex(
            "31 c0"  #                xor eax, eax
            "cd 20"  #                int 0x20               to _HANDLER by the IDT, and back
            "e6 e9"  #                out 0xe9, al
        ),
    ),
)
_HANDLER_CODE: Final = bytes.fromhex(
    "b0 2a"  #                        mov al, 42
    "48 cf"  #                        iretq
)

LOOPS: Final = 2000
SMALL: Final = bytes.fromhex(
    "b0 2a"  #                        mov al, 42
    "e6 e9"  #                        out 0xe9, al
    "b9 d0 07"  #                     mov cx, 2000           LOOPS
    "49"  #                        1: dec cx
    "75 fd"  #                        jnz 1b
    "e6 e9"  #                        out 0xe9, al
    "f4"  #                           hlt
)


@attrs.frozen(kw_only=True)
class TrialResult:
    """What the guests did."""

    pieces: Mapping[str, str | None]
    """Each piece of `LONG_MODE`: None if it ran, else what happened to it."""
    small: str | None = None
    """What happened to the 16-bit guest, or None if it ran or was not needed."""
    mips: float | None = None
    """Million instructions a second of the 16-bit guest, where it ran."""
    out_of_time: bool = False
    """Whether a guest was ended. A host that was busy says nothing of its CPU."""

    @property
    def runs_kernels(self) -> bool:
        """Whether every piece ran."""
        return not any(self.pieces.values())


def try_guests(
    hypervisor: Hypervisor, clock: Callable[[], float] = time.perf_counter
) -> TrialResult:
    """Run the guests on a VM of their own. The calling thread is the vCPU's.

    Raises:
        MicrovmError: the VM can't be made.
        RuntimeError: the host has no thread left.
    """
    memory = GuestMemory.anonymous(_MEMORY_BYTES)
    try:
        _write_handler(memory)
        vm = hypervisor.create_vm(vcpu_count=1)
        try:
            for region in memory.regions:
                vm.map_memory(region)
            vcpu = vm.create_vcpu(0)
            try:
                return _try_on(vcpu, memory, clock)
            finally:
                vcpu.close()
        finally:
            vm.close()
    finally:
        memory.release()


def _try_on(vcpu: Vcpu, memory: GuestMemory, clock: Callable[[], float]) -> TrialResult:
    with _Bounded(vcpu) as bounded:
        at_reset = vcpu.registers()
        pieces: dict[str, str | None] = {}
        for piece in LONG_MODE:
            memory.write(_CODE, piece.code)
            # All of them each time: a triple fault resets the CPU on AMD.
            vcpu.set_registers(_long_mode(memory))
            pieces[piece.name] = bounded.fault()
        if not any(pieces.values()):
            return TrialResult(pieces=pieces)
        memory.write(_CODE, SMALL)
        vcpu.set_registers(at_reset)
        vcpu.set_registers({**_real_mode(at_reset), "rip": _CODE, "rflags": RFLAGS_RESERVED})
        small = bounded.fault()
        start = clock()
        small = small or bounded.fault()
        took = clock() - start
        mips = None if small else 2 * LOOPS / max(took, 1e-6) / 1e6
        return TrialResult(pieces=pieces, small=small, mips=mips, out_of_time=bounded.out_of_time)


class _Bounded:
    """Runs guests until all of them have used up their time."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self._over = threading.Event()
        self._guard = threading.Timer(BOUND_S, self._end)

    def __enter__(self) -> _Bounded:
        self._guard.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._guard.cancel()
        self._guard.join()

    def _end(self) -> None:
        self._over.set()
        self._vcpu.kick()

    @property
    def out_of_time(self) -> bool:
        """Whether they have."""
        return self._over.is_set()

    def fault(self) -> str | None:
        """Run, and say what the guest did other than give the answer."""
        while not self._over.is_set():
            exit_ = self._vcpu.run()
            if not isinstance(exit_, Interrupted):
                return _fault_of(exit_)
        return f"no answer within {BOUND_S:g} s"


def _fault_of(exit_: VcpuExit) -> str | None:
    """What is wrong with an exit; nothing, if it is the answer."""
    match exit_:
        case PioWrite(port=port, data=data) if port == PORT and data[0] == ANSWER:
            return None
        case PioWrite(port=port, data=data) if port == PORT:
            return f"wrong result ({data[0]})"
        case InternalError(what=what, details=details):
            return what + "".join(f" ({said})" for said in details.values())
        case Shutdown():
            return "triple fault"
    return f"unexpected exit: {exit_}"


# --- memory and registers ----------------------------------------------------------------------


def _write_handler(memory: GuestMemory) -> None:
    # A 64-bit interrupt gate (Intel SDM volume 3A, 6.14.1): offset, selector, present and of
    # type 14.
    gate = struct.pack("<HHHHQ", _HANDLER, CODE_SELECTOR, 0x8E00, 0, 0)
    memory.write(_IDT + _VECTOR * len(gate), gate)
    memory.write(_HANDLER, _HANDLER_CODE)


def _long_mode(memory: GuestMemory) -> dict[str, RegisterValue]:
    return {
        **long_mode_entry(memory, _CODE),
        "cr4": CR4_PAE | CR4_OSFXSR,
        "idt": DescriptorTable(base=_IDT, limit=0xFFF),
        "rsp": _STACK,
    }


def _real_mode(at_reset: Mapping[str, RegisterValue]) -> dict[str, RegisterValue]:
    code = at_reset["cs"]
    assert isinstance(code, Segment)
    return {"cs": attrs.evolve(code, selector=0, base=0)}
