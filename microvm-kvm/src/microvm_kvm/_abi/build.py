"""The C declarations of KVM's interface, and what makes `_generated.py` of them.

``python -m microvm_kvm._abi.build`` writes the file anew, and with ``--check`` it only compares:
``nox -s abi``. Needs cffi's compiler part (pycparser) and no C compiler; whoever merely imports
the generated file needs neither.

The structures are those of <linux/kvm.h> and, for x86, <asm/kvm.h>, field by field under their
names there; of unions, the members that we use. They are kernel ABI: they grow only where they
have padding. All integers have a fixed width, so that sizes and offsets come out the same on
every system, whether it has KVM or not.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Final

MODULE: Final = "microvm_kvm._abi._generated"
TARGET: Final = Path(__file__).with_name("_generated.py")

CDEF: Final = """
/* ioctl(2) is variadic, but every request of KVM takes one argument, which is a pointer, a number
   of a pointer's size, or nothing. Declared as it is used, cffi prepares the call once. */
int ioctl(int fd, unsigned long request, void *argument);

/* --- <linux/kvm.h> ------------------------------------------------------------------------ */

struct kvm_userspace_memory_region {
    uint32_t slot;
    uint32_t flags;
    uint64_t guest_phys_addr;
    uint64_t memory_size;
    uint64_t userspace_addr;
};

struct kvm_pit_config {
    uint32_t flags;
    uint32_t pad[15];
};

struct kvm_irqfd {
    uint32_t fd;
    uint32_t gsi;
    uint32_t flags;
    uint32_t resamplefd;
    uint8_t pad[16];
};

struct kvm_ioeventfd {
    uint64_t datamatch;
    uint64_t addr;
    uint32_t len;
    int32_t fd;
    uint32_t flags;
    uint8_t pad[36];
};

struct kvm_translation {
    uint64_t linear_address;
    uint64_t physical_address;
    uint8_t valid;
    uint8_t writeable;
    uint8_t usermode;
    uint8_t pad[5];
};

struct kvm_mp_state {
    uint32_t mp_state;
};

/* Followed by the entries: len bytes of a signal set. */
struct kvm_signal_mask {
    uint32_t len;
};

/* The page that the kernel shares with us for each vCPU; its size is KVM_GET_VCPU_MMAP_SIZE. */
struct kvm_run {
    uint8_t request_interrupt_window;
    uint8_t immediate_exit;
    uint8_t padding1[6];

    uint32_t exit_reason;
    uint8_t ready_for_interrupt_injection;
    uint8_t if_flag;
    uint16_t flags;
    uint64_t cr8;
    uint64_t apic_base;
    union {
        struct {
            uint64_t hardware_exit_reason;
        } hw;
        struct {
            uint64_t hardware_entry_failure_reason;
            uint32_t cpu;
        } fail_entry;
        struct {
            uint8_t direction;
            uint8_t size;
            uint16_t port;
            uint32_t count;
            uint64_t data_offset;
        } io;
        struct {
            uint64_t phys_addr;
            uint8_t data[8];
            uint32_t len;
            uint8_t is_write;
        } mmio;
        struct {
            uint32_t suberror;
            uint32_t ndata;
            uint64_t data[16];
        } internal;
        struct {
            uint32_t suberror;
            uint32_t ndata;
            uint64_t flags;
            uint8_t insn_size;
            uint8_t insn_bytes[15];
        } emulation_failure;
        struct {
            uint32_t type;
            uint32_t ndata;
            uint64_t data[16];
        } system_event;
        uint8_t padding[256];
    };
};

/* --- <asm/kvm.h> of x86 ------------------------------------------------------------------- */

struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx;
    uint64_t rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11;
    uint64_t r12, r13, r14, r15;
    uint64_t rip, rflags;
};

struct kvm_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint8_t type;
    uint8_t present, dpl, db, s, l, g, avl;
    uint8_t unusable;
    uint8_t padding;
};

struct kvm_dtable {
    uint64_t base;
    uint16_t limit;
    uint16_t padding[3];
};

struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer;
    uint64_t apic_base;
    uint64_t interrupt_bitmap[4];
};

struct kvm_fpu {
    uint8_t fpr[8][16];
    uint16_t fcw;
    uint16_t fsw;
    uint8_t ftwx;
    uint8_t pad1;
    uint16_t last_opcode;
    uint64_t last_ip;
    uint64_t last_dp;
    uint8_t xmm[16][16];
    uint32_t mxcsr;
    uint32_t pad2;
};

struct kvm_lapic_state {
    uint8_t regs[0x400];
};

struct kvm_cpuid_entry2 {
    uint32_t function;
    uint32_t index;
    uint32_t flags;
    uint32_t eax;
    uint32_t ebx;
    uint32_t ecx;
    uint32_t edx;
    uint32_t padding[3];
};

/* Followed by nent entries. */
struct kvm_cpuid2 {
    uint32_t nent;
    uint32_t padding;
};

struct kvm_msr_entry {
    uint32_t index;
    uint32_t reserved;
    uint64_t data;
};

/* Followed by nmsrs entries. */
struct kvm_msrs {
    uint32_t nmsrs;
    uint32_t pad;
};

/* Followed by nmsrs numbers of 32 bits. */
struct kvm_msr_list {
    uint32_t nmsrs;
};
"""


def generate() -> str:
    """The text of `_generated.py`."""
    import cffi

    builder = cffi.FFI()
    builder.cdef(CDEF)
    builder.set_source(MODULE, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "_generated.py"
        with contextlib.redirect_stdout(None):  # it tells where it writes
            builder.emit_python_code(str(path))
        return path.read_text()


def main(argv: list[str]) -> int:
    """Write the file, or with ``--check`` say whether it is up to date: exit code 1 if not."""
    text = generate()
    if "--check" not in argv:
        TARGET.write_text(text)
    elif not TARGET.exists() or TARGET.read_text() != text:
        print(f"{TARGET} is not what build.py makes. Run: nox -s abi", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
