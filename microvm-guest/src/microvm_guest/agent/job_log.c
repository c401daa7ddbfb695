#include "job_log.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

bool log_open(struct job_log *log, size_t size)
{
    void *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *log = (struct job_log){.bytes = bytes == MAP_FAILED ? NULL : bytes, .size = size};
    return log->bytes != NULL;
}

void log_close(struct job_log *log)
{
    if (log->bytes != NULL)
        munmap(log->bytes, log->size);
    log->bytes = NULL;
}

uint64_t log_begin(const struct job_log *log)
{
    return log->end > log->size ? log->end - log->size : 0;
}

static size_t until_the_edge(const struct job_log *log, uint64_t position, size_t most)
{
    size_t left = log->size - (size_t)(position % log->size);
    return left < most ? left : most;
}

ssize_t log_read_from(struct job_log *log, int fd, size_t most)
{
    ssize_t got =
        read(fd, log->bytes + log->end % log->size, until_the_edge(log, log->end, most));
    log->end += got > 0 ? (uint64_t)got : 0;
    return got;
}

size_t log_copy(const struct job_log *log, uint64_t position, uint8_t *into, size_t most)
{
    uint64_t left = log->end - position;
    size_t length = until_the_edge(log, position, left < most ? (size_t)left : most);
    memcpy(into, log->bytes + position % log->size, length);
    return length;
}
