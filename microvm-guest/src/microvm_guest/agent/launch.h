/* From a RUN's fields to a process: everything up to exec, done in the child, which reports. */

#ifndef MICROVM_LAUNCH_H
#define MICROVM_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct launch {
    /* what is asked: fields of the RUN, checked; strings end at the field's end, without a NUL */
    uint8_t *fields;
    uint8_t *fields_end;
    uint32_t flags; /* enum run_flag */
    uint32_t window;
    bool tty;
    uint16_t rows, cols;

    /* what became of it: our ends, non-blocking; -1 where there is none */
    pid_t pid;
    int report; /* EOF once the child has exec'ed, or an ERROR's payload */
    int in, out, err;
};

#define LAUNCH_MAX_REPORT 516 /* u32 code and at most WIRE_MAX_ERROR_TEXT: one atomic pipe write */

/* Fill in what is asked. Returns what the host did wrong, or NULL. */
const char *launch_parse(struct launch *launch, uint8_t *fields, uint32_t length);

/* Fork. Returns 0 or an error code of the protocol, with a sentence in `why`. */
uint32_t launch_start(struct launch *launch, const char **why);

#endif
