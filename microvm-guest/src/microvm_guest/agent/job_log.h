/* A job's log: the last bytes of what it has printed, in memory that is taken as it is needed. */

#ifndef MICROVM_JOB_LOG_H
#define MICROVM_JOB_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct job_log {
    uint8_t *bytes;
    size_t size;
    uint64_t end; /* bytes ever written: positions in the log are counted like this */
};

bool log_open(struct job_log *log, size_t size);
void log_close(struct job_log *log);

/* The earliest position that is still kept. */
uint64_t log_begin(const struct job_log *log);

/* Read once from `fd`, at most `most` bytes. As read(2). */
ssize_t log_read_from(struct job_log *log, int fd, size_t most);

/* Copy what is at `position`, which is kept, and how much that was. */
size_t log_copy(const struct job_log *log, uint64_t position, uint8_t *into, size_t most);

#endif
