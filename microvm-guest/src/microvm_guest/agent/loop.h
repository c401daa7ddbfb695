/* The event loop: one thread, one epoll, level-triggered.
 *
 * A pipe whose other end is closed reports EPOLLHUP whatever it is watched for, so a watch with
 * nothing to wait for is taken out of the epoll set rather than left in with an empty mask. */

#ifndef MICROVM_LOOP_H
#define MICROVM_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct watch {
    int fd; /* -1: not in use */
    uint32_t events;
    void (*ready)(struct watch *watch, uint32_t events);
};

void loop_open(void);

/* Take over `fd`, waiting for nothing yet. */
void watch_open(struct watch *watch, int fd, void (*ready)(struct watch *, uint32_t));

/* Wait for these events from now on; 0 for none. False when the kernel refuses (no memory). */
bool watch_for(struct watch *watch, uint32_t events);

/* Forget the descriptor, also in the batch of events being served, and hand it back; -1 for none. */
int watch_release(struct watch *watch);

/* Close the descriptor and forget it, also in the batch of events being served. */
void watch_close(struct watch *watch);

/* Serve what is ready; wait for it first, until `deadline_ns` on the monotonic clock (0: for ever). */
void loop_once(uint64_t deadline_ns);

#endif
