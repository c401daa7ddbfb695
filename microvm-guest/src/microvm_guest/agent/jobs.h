/* Jobs: commands that no stream and no connection holds, with a log each.
 *
 *   RUN with DETACH -> STARTED -> the job runs; its stream is its first attachment
 *   ATTACH          -> STARTED -> what is in the log, then what comes -> EOF -> EXIT
 *
 * A job prints into its log, always: the log keeps the last bytes, so a job never waits for a
 * reader, and a reader that is too slow is told by SKIPPED how much it has missed. A job that has
 * ended is kept, with its log, until it is forgotten or gives way to a new one. */

#ifndef MICROVM_JOBS_H
#define MICROVM_JOBS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct attachment;
struct connection;
struct frame;
struct launch;

/* Start one, and attach `stream` to it; or say why not on that stream. */
void job_run(struct connection *connection, uint32_t stream, struct launch *launch);

/* Each returns what the host did wrong, or NULL. */
const char *job_attach(struct connection *connection, const struct frame *frame);
const char *attachment_window(struct attachment *attachment, uint32_t channel, uint32_t bytes);
const char *attachment_signal(struct attachment *attachment, uint32_t signal);

/* The host lets go of the stream. `forget`: and of the job, which is ended and not kept. */
void attachment_release(struct attachment *attachment, bool forget);

struct attachment *attachment_find(struct connection *connection, uint32_t stream);

/* The answer to JOBS. */
void jobs_tell(struct connection *connection);

/* A child of ours has ended that is no command. */
void job_reaped(pid_t pid, int status);

/* The connection is lost: the jobs stay. */
void jobs_disown(struct connection *connection);

/* The connection has room again: go on telling. */
void jobs_rearm(struct connection *connection);

void jobs_signal(int signal);

/* Those that run. */
unsigned jobs_count(void);

#endif
