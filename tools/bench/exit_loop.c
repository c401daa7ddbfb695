/* The least that a VM exit costs on this host: KVM_RUN in a loop, and nothing else.
 *
 * The guest is `out %al, $0x80; jmp back` in real mode, or with "mmio" `mov %al, (0x8000)` where
 * there is no memory. Prints the mean cost of an exit in nanoseconds.
 *
 * usage: exit_loop pio|mmio COUNT
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

static const unsigned char pio[] = {0xe6, 0x80, 0xeb, 0xfc};
static const unsigned char mmio[] = {0xa2, 0x00, 0x80, 0xeb, 0xfb};

static int must(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int is_mmio = !strcmp(argv[1], "mmio");
    long count = atol(argv[2]);
    int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm");
    int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    unsigned char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(memory, is_mmio ? mmio : pio, is_mmio ? sizeof mmio : sizeof pio);
    struct kvm_userspace_memory_region region = {
        .guest_phys_addr = 0x1000, .memory_size = 4096, .userspace_addr = (unsigned long)memory};
    must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    int vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    struct kvm_sregs sregs;
    must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = sregs.ds.base = sregs.ds.selector = 0;
    must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long i = 0; i < count; i++)
        ioctl(vcpu, KVM_RUN, 0);
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%.1f\n", ((end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec)) / count);
    return 0;
}
