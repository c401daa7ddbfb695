"""A vCPU, on the thread that runs it.

How a kick works, and why none is lost. A signal (SIGRTMIN) is blocked in the vCPU's thread from
the vCPU's creation to its close. KVM_SET_SIGNAL_MASK has the kernel put another mask in force for
the time of KVM_RUN, one in which it is not blocked; the kernel swaps masks with interrupts of its
own closed to us, so there is no instant of user code in which the signal could be delivered.

* Sent before KVM_RUN: it is blocked, so it stays pending. KVM_RUN finds a signal pending before it
  enters the guest, and returns EINTR.
* Sent during KVM_RUN: the kernel sends the CPU an interrupt, which leaves the guest whatever its
  interrupt flag says, or wakes the halted vCPU; then as above.
* Sent after: it is blocked again. It stays pending for the next KVM_RUN.

It is never delivered, so no handler is needed, and its default action (to end the process) never
taken: on EINTR `run` takes it away by sigtimedwait(2), and so does `close` before it unblocks it.

`_kicked` is true exactly while one signal of ours is pending, and both change under `_lock`. So
there is never more than one, however often `kick` is called (real-time signals queue, up to a
limit), and a kick that finds it true has nothing to do: the signal that is pending ends the run
that is under way or the next. `close` clears `_open` under the same lock, on the vCPU's thread: a
signal is sent only to a thread that is alive, and has it blocked.

A signal of another kind that ends KVM_RUN early is an `Interrupted` too: it says "or nothing at
all".
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from microvm.abc import Vcpu
from microvm.arch.x86_64.registers import RFLAGS_IF
from microvm.errors import GuestMemoryError, HypervisorCallError
from microvm.exits import MmioRead, PioRead
from microvm_kvm import _registers
from microvm_kvm._abi import constants as kvm
from microvm_kvm._abi import ffi, ioctls, pointer_to
from microvm_kvm._decode import INTERRUPTED, Decoder, answer_read
from microvm_kvm._x86_64 import set_up_vcpu

if TYPE_CHECKING:
    from microvm.arch.x86_64.registers import RegisterValue
    from microvm.exits import VcpuExit
    from microvm_kvm._abi import Calls
    from microvm_kvm._facts import KvmFacts

_CODE_BYTES: Final = 16
_PAGE: Final = 0x1000
_NOT_STARTED: Final = (kvm.KVM_MP_STATE_UNINITIALIZED, kvm.KVM_MP_STATE_INIT_RECEIVED)


class KvmVcpu(Vcpu):
    """One vCPU of a VM, created on the calling thread.

    Args:
        calls: The kernel.
        vm: The VM's descriptor.
        facts: Of its KVM.
        index: Its number, and its APIC id.
        count: vCPUs of the VM.
        read_memory: Guest physical memory at an address, for `code_at_instruction_pointer`.

    Raises:
        HypervisorCallError: KVM refused; nothing is left of the attempt.
    """

    def __init__(
        self,
        calls: Calls,
        vm: int,
        facts: KvmFacts,
        *,
        index: int,
        count: int,
        read_memory: Callable[[int, int], bytes],
    ) -> None:
        self._calls = calls
        self._read_memory = read_memory
        self._lock = threading.Lock()
        self._kicked = False
        self._open = True
        self._last: VcpuExit | None = None
        """The last exit, until its read is completed."""
        with contextlib.ExitStack() as undo:
            self._fd = calls.ioctl(vm, ioctls.KVM_CREATE_VCPU, index)
            undo.callback(os.close, self._fd)
            self._enter = calls.runner(self._fd)
            try:
                self._run = mmap.mmap(self._fd, facts.mmap_size)
            except OSError as error:
                raise HypervisorCallError("mmap of kvm_run", error.errno or 0) from error
            undo.callback(self._run.close)
            # The method itself: calling an object costs a look-up more.
            self._decode = Decoder(self._run).exit
            set_up_vcpu(calls, self._fd, facts, index=index, count=count)
            self._thread = threading.get_ident()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
            undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            _unblock_in_run(calls, self._fd, before)
            self._undo = undo.pop_all()

    # --- the exit path -------------------------------------------------------------------------

    def run(self) -> VcpuExit:
        if self._enter():
            return self._stopped_short(self._calls.error_number())
        exit_ = self._last = self._decode()
        return exit_

    def _stopped_short(self, number: int) -> VcpuExit:
        # EAGAIN: another vCPU has just started this one, which has run nothing yet.
        if number not in (errno.EINTR, errno.EAGAIN):
            raise HypervisorCallError("KVM_RUN", number)
        self._last = None
        with self._lock:
            self._take_signal()
        return INTERRUPTED

    def complete_read(self, data: bytes) -> None:
        match self._last:
            case MmioRead(length=length):
                wanted = length
            case PioRead(size=size, count=count):
                wanted = size * count
            case _:
                raise ValueError("The last exit was no read, or has been completed.")
        if len(data) != wanted:
            raise ValueError(f"{len(data)} bytes for a read of {wanted}.")
        answer_read(self._run, data)
        self._last = None

    # --- kicks ---------------------------------------------------------------------------------

    def kick(self) -> None:
        with self._lock:
            if self._kicked or not self._open:
                return
            try:
                signal.pthread_kill(self._thread, signal.SIGRTMIN)
            except OSError as error:
                raise HypervisorCallError(
                    "pthread_kill", error.errno or 0, remedy="Raise RLIMIT_SIGPENDING (ulimit -i)."
                ) from error
            self._kicked = True

    def _take_signal(self) -> None:
        """Take our signal away if it is pending. Holds the lock."""
        if self._kicked:
            signal.sigtimedwait({signal.SIGRTMIN}, 0)
            self._kicked = False

    # --- state ---------------------------------------------------------------------------------

    def registers(self) -> Mapping[str, RegisterValue]:
        regs, sregs = ffi.new("struct kvm_regs *"), ffi.new("struct kvm_sregs *")
        self._calls.ioctl(self._fd, ioctls.KVM_GET_REGS, regs)
        self._calls.ioctl(self._fd, ioctls.KVM_GET_SREGS, sregs)
        return _registers.load(regs, sregs)

    def set_registers(self, values: Mapping[str, RegisterValue]) -> None:
        _registers.check_names(values)
        special = {n: v for n, v in values.items() if n in _registers.SPECIAL_REGISTERS}
        general = {n: v for n, v in values.items() if n not in _registers.SPECIAL_REGISTERS}
        # Special ones first: the mode decides how much of RIP and RFLAGS there is.
        if special:
            sregs = ffi.new("struct kvm_sregs *")
            self._calls.ioctl(self._fd, ioctls.KVM_GET_SREGS, sregs)
            _registers.store(sregs, special)
            self._calls.ioctl(self._fd, ioctls.KVM_SET_SREGS, sregs)
        if general:
            regs = ffi.new("struct kvm_regs *")
            self._calls.ioctl(self._fd, ioctls.KVM_GET_REGS, regs)
            _registers.store(regs, general)
            self._calls.ioctl(self._fd, ioctls.KVM_SET_REGS, regs)

    def is_halted_for_good(self) -> bool:
        state = ffi.new("struct kvm_mp_state *")
        self._calls.ioctl(self._fd, ioctls.KVM_GET_MP_STATE, state)
        if state.mp_state in _NOT_STARTED:
            return True
        if state.mp_state != kvm.KVM_MP_STATE_HALTED:
            return False
        regs = ffi.new("struct kvm_regs *")
        self._calls.ioctl(self._fd, ioctls.KVM_GET_REGS, regs)
        return not regs.rflags & RFLAGS_IF

    def prepare_resume(self) -> None:
        try:
            self._calls.ioctl(self._fd, ioctls.KVM_KVMCLOCK_CTRL)
        except HypervisorCallError as error:
            if error.errno != errno.EINVAL:  # the guest does not use that clock
                raise

    def code_at_instruction_pointer(self) -> bytes:
        try:
            registers = self.registers()
            code_segment, pointer = registers["cs"], registers["rip"]
            base = getattr(code_segment, "base", 0)
            assert isinstance(pointer, int)
            linear = (base + pointer) & 0xFFFF_FFFF_FFFF_FFFF
            found = ffi.new("struct kvm_translation *", {"linear_address": linear})
            self._calls.ioctl(self._fd, ioctls.KVM_TRANSLATE, found)
            if not found.valid:
                return b""
            # Not beyond the page: the next one may be anywhere.
            length = min(_CODE_BYTES, _PAGE - found.physical_address % _PAGE)
            return self._read_memory(found.physical_address, length)
        except (HypervisorCallError, GuestMemoryError):
            return b""

    def close(self) -> None:
        with self._lock:
            if not self._open:
                return
            self._open = False
            self._take_signal()
        self._undo.close()


def _unblock_in_run(calls: Calls, vcpu: int, outside: set[int | signal.Signals]) -> None:
    """Let our signal end KVM_RUN; the others are as the thread has them outside."""
    blocked = sum(1 << number - 1 for number in outside if number != signal.SIGRTMIN)
    # struct kvm_signal_mask: the length, which must be that of the kernel's own sigset_t.
    mask = bytearray((8).to_bytes(4, "little") + blocked.to_bytes(8, "little"))
    calls.ioctl(vcpu, ioctls.KVM_SET_SIGNAL_MASK, pointer_to(mask))
