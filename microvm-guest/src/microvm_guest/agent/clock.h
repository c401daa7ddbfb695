/* The guest's clocks.
 *
 * A guest whose host sleeps sleeps too, and wakes with a wall clock that is behind. So the host
 * says its wall time in HELLO and in every RUN. The first one sets the clock; a later one moves it
 * forward by what the host's clock has gained on the guest's boot clock since the reference, if
 * that is more than a second. Delay on the way only makes the gain look smaller, so it never
 * moves the clock wrongly; and a clock that somebody in the guest set on purpose keeps its offset.
 * For the same reason time that seems to have gone back is delay, unless the host says that its
 * clock was set back. */

#ifndef MICROVM_CLOCK_H
#define MICROVM_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

uint64_t monotonic_ns(void);

/* Whether this process may set the clock at all: not when it runs on somebody's own machine. */
void clock_own(bool owned);

/* Set the wall clock to `wall_ns` since 1970. */
void clock_set(uint64_t wall_ns);

/* The guest has just gone on after a pause or a sleep, and this is the host's wall time or a little
 * before: as a hint, but what was lost is made up for however little it is. */
void clock_catch_up(uint64_t host_ns);

/* The host's clock was set back, and this is what it shows or showed a little before: a second or
 * more is followed. By what the word was delayed the guest is behind then, until the next one. */
void clock_step_back(uint64_t host_ns);

/* The host's wall time at this moment, or a little before. */
void clock_hint(uint64_t host_ns);

#endif
