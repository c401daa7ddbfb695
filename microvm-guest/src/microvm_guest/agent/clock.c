#include "clock.h"

#include <time.h>

#define NS_PER_S 1000000000ull
#define STEP_NS (1 * NS_PER_S) /* gains below this are delay and drift: left to the guest */

static bool owned;
static uint64_t reference_host_ns, reference_boot_ns; /* 0: the host has not told yet */

static uint64_t read_clock(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void write_clock(uint64_t ns)
{
    struct timespec value = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
    if (owned)
        clock_settime(CLOCK_REALTIME, &value);
}

uint64_t monotonic_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

void clock_own(bool mine)
{
    owned = mine;
}

void clock_set(uint64_t host_ns)
{
    write_clock(host_ns);
    reference_host_ns = host_ns;
    reference_boot_ns = read_clock(CLOCK_BOOTTIME);
}

void clock_hint(uint64_t host_ns)
{
    if (host_ns == 0)
        return;
    if (reference_host_ns == 0) {
        clock_set(host_ns);
        return;
    }
    uint64_t now = read_clock(CLOCK_BOOTTIME);
    uint64_t expected = reference_host_ns + (now - reference_boot_ns);
    if (host_ns <= expected || host_ns - expected < STEP_NS)
        return;
    write_clock(read_clock(CLOCK_REALTIME) + (host_ns - expected));
    reference_host_ns = host_ns;
    reference_boot_ns = now;
}
