/* What the host tells of the machine: that it will be paused, and that it goes on.
 *
 * Before a pause, which may be the machine's last moment, what programs have written is put on the
 * disks. That may take long, so a child does it; the answer is sent at its end. */

#ifndef MICROVM_NOTICE_H
#define MICROVM_NOTICE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct connection;

/* Returns what the host did wrong, or NULL. */
const char *notice_serve(struct connection *connection, uint32_t notice, uint64_t wall_ns);

/* Whether this was a child of ours. */
bool notice_reaped(pid_t pid);

/* Pauses that the host has told of. */
uint32_t notices_of_pauses(void);

#endif
