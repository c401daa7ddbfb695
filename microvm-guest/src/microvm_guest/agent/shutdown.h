/* The end of the guest, in stages, none of which waits for ever: SIGTERM to everything, a grace,
 * SIGKILL to everything, the last frames out, file systems synced, reset or power-off. A process
 * that is not process 1 ends its own commands and itself. */

#ifndef MICROVM_SHUTDOWN_H
#define MICROVM_SHUTDOWN_H

#include <stdbool.h>
#include <stdint.h>

/* `process_1`: whether the guest is this process's to end. */
void shutdown_owns(bool process_1);

void shutdown_begin(bool power_off);

/* Call after every batch of events. Does not return once all is done. */
void shutdown_advance(void);

/* When shutdown_advance() is next wanted, for loop_once(); 0 for whenever. */
uint64_t shutdown_deadline(void);

#endif
