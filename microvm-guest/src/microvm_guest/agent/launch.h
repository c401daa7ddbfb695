/* From a RUN's fields to a process: pipes or a terminal, the user, a child that becomes the command.
 *
 * What may block for long is done in the child: entering a directory and loading a program, on a
 * file system that may be anybody's. An ordinary command, a program by its bare name on the default
 * PATH in the default directory, has neither, so its child may hold up this process until it has
 * exec'ed: vfork(2), which under emulation saves a sixth of the time to a first result. */

#ifndef MICROVM_LAUNCH_H
#define MICROVM_LAUNCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct launch {
    /* what is asked: fields of the RUN, checked; texts end at the field's end, without a NUL */
    const uint8_t *fields;
    size_t fields_length;
    const uint8_t *user; /* NULL: stay who we are */
    size_t user_length;
    bool ordinary;
    uint32_t flags; /* enum run_flag */
    uint32_t window;
    uint32_t log_bytes; /* of a job */
    bool tty;
    uint16_t rows, cols;

    /* what became of it: our ends, non-blocking; -1 where there is none */
    pid_t pid;
    int report; /* EOF once the child has exec'ed, or an ERROR's payload */
    int in, out, err;
};

#define LAUNCH_MAX_REPORT 516 /* u32 code and at most WIRE_MAX_ERROR_TEXT: one atomic pipe write */

/* Fill in what is asked. Returns what the host did wrong, or NULL. */
const char *launch_parse(struct launch *launch, const uint8_t *fields, size_t length);

/* Returns 0 or an error code of the protocol, with a sentence in `why`. */
uint32_t launch_start(struct launch *launch, const char **why);

#endif
