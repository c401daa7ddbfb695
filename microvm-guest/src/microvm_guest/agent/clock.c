#include "clock.h"

#include <time.h>

#define NS_PER_S 1000000000ull
#define STEP_NS (1 * NS_PER_S) /* less than this is delay and drift: left to the guest */

static bool owned;
static bool told; /* the clock has been set once */
static uint64_t reference_host_ns, reference_boot_ns; /* 0: none */

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

static void refer_to(uint64_t host_ns)
{
    reference_host_ns = host_ns;
    reference_boot_ns = read_clock(CLOCK_BOOTTIME);
}

void clock_set(uint64_t wall_ns)
{
    write_clock(wall_ns);
    told = true;
    reference_host_ns = 0; /* it need not be the host's time: the next hint says what that is */
}

/* What the host's clock shows now, as far as is known: false where it has not been said yet. Then
 * this is the reference, and the clock is set by it if nobody else has. */
static bool expect(uint64_t host_ns, uint64_t *expected)
{
    if (host_ns == 0)
        return false;
    if (!told)
        clock_set(host_ns);
    if (reference_host_ns == 0) {
        refer_to(host_ns);
        return false;
    }
    *expected = reference_host_ns + (read_clock(CLOCK_BOOTTIME) - reference_boot_ns);
    return true;
}

static void make_up(uint64_t host_ns, uint64_t step_ns)
{
    uint64_t expected;
    if (!expect(host_ns, &expected) || host_ns <= expected || host_ns - expected < step_ns)
        return;
    write_clock(read_clock(CLOCK_REALTIME) + (host_ns - expected));
    refer_to(host_ns);
}

void clock_hint(uint64_t host_ns)
{
    make_up(host_ns, STEP_NS);
}

void clock_catch_up(uint64_t host_ns)
{
    make_up(host_ns, 0);
}

void clock_step_back(uint64_t host_ns)
{
    uint64_t expected;
    make_up(host_ns, STEP_NS); /* it may have slept longer than it was set back by */
    if (!expect(host_ns, &expected) || host_ns >= expected || expected - host_ns < STEP_NS)
        return;
    uint64_t now = read_clock(CLOCK_REALTIME), back = expected - host_ns;
    write_clock(now > back ? now - back : 0);
    refer_to(host_ns);
}
