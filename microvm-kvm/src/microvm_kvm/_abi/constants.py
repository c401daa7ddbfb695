"""Numbers of <linux/kvm.h> and <asm/kvm.h>, under their names there.

The offsets into struct kvm_run are ours, named by structure and field: `_decode` reads exits
without cffi. A test holds them to `build.CDEF`, and that to what was measured with a C compiler.
"""

from __future__ import annotations

from typing import Final

KVM_API_VERSION: Final = 12
"""Frozen since Linux 2.6.22; anything else is not this interface."""

# --- capabilities, for KVM_CHECK_EXTENSION ---------------------------------------------------

KVM_CAP_IRQCHIP: Final = 0
KVM_CAP_USER_MEMORY: Final = 3
KVM_CAP_SET_TSS_ADDR: Final = 4
KVM_CAP_EXT_CPUID: Final = 7
KVM_CAP_MP_STATE: Final = 14
KVM_CAP_DESTROY_MEMORY_REGION_WORKS: Final = 21
KVM_CAP_IRQFD: Final = 32
KVM_CAP_PIT2: Final = 33
KVM_CAP_IOEVENTFD: Final = 36
KVM_CAP_MAX_VCPUS: Final = 66
KVM_CAP_TSC_DEADLINE_TIMER: Final = 72

# --- flags and states ------------------------------------------------------------------------

KVM_PIT_SPEAKER_DUMMY: Final = 1
KVM_IOEVENTFD_FLAG_DATAMATCH: Final = 1 << 0
KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Final = 1 << 0  # the header's own spelling
KVM_MP_STATE_UNINITIALIZED: Final = 1
KVM_MP_STATE_INIT_RECEIVED: Final = 2
KVM_MP_STATE_HALTED: Final = 3

# --- exits -----------------------------------------------------------------------------------

KVM_EXIT_IO: Final = 2
KVM_EXIT_HLT: Final = 5
KVM_EXIT_MMIO: Final = 6
KVM_EXIT_SHUTDOWN: Final = 8
KVM_EXIT_FAIL_ENTRY: Final = 9
KVM_EXIT_INTR: Final = 10
KVM_EXIT_INTERNAL_ERROR: Final = 17
KVM_EXIT_SYSTEM_EVENT: Final = 24

KVM_EXIT_IO_OUT: Final = 1

KVM_INTERNAL_ERROR_EMULATION: Final = 1
KVM_INTERNAL_ERROR_SIMUL_EX: Final = 2
KVM_INTERNAL_ERROR_DELIVERY_EV: Final = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: Final = 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES: Final = 1 << 0

KVM_SYSTEM_EVENT_SHUTDOWN: Final = 1
KVM_SYSTEM_EVENT_RESET: Final = 2
KVM_SYSTEM_EVENT_CRASH: Final = 3

# --- struct kvm_run --------------------------------------------------------------------------

RUN_EXIT_REASON: Final = 8
RUN_EXIT: Final = 32
"""The union; what follows is the first field of each member."""
RUN_MMIO_DATA: Final = 40
"""Its two neighbours are the address before it and length and direction behind."""
RUN_EMULATION_FLAGS: Final = 40
RUN_EMULATION_INSN_SIZE: Final = 48
RUN_EMULATION_INSN_BYTES: Final = 49
RUN_DATA: Final = 40
"""The array of 64-bit words of `internal` and `system_event`."""
RUN_DATA_WORDS: Final = 16
