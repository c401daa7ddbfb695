/* Killing what a command left in its session: job control gives each job a group of its own, so
 * the command's own process group is not all of it. A process that made a session for itself has
 * left on purpose and stays. */

#ifndef MICROVM_SESSION_H
#define MICROVM_SESSION_H

#include <stdbool.h>
#include <sys/types.h>

/* SIGKILL every process whose session `doomed` says yes to. Needs /proc; without it does nothing. */
void session_kill(bool (*doomed)(pid_t session));

#endif
