/* A command's stdin: what the host has sent and the command has not yet read.
 *
 * The host may be WIRE_STDIN_WINDOW bytes ahead. What the pipe takes at once never touches the
 * buffer; the buffer is made when a first byte must wait. */

#ifndef MICROVM_INPUT_H
#define MICROVM_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loop.h"

struct connection;

struct input {
    struct watch watch; /* first: the loop hands it back */
    struct connection *connection;
    uint32_t stream;
    uint32_t window; /* what the host may still send */
    uint32_t owed;   /* what the command has taken since the host was last told */
    bool started, tty, eof;
    uint8_t last_byte;
    uint8_t *buffer;
    size_t head, tail;
};

/* `fd` -1: the command has no stdin of ours. */
void input_open(struct input *input, int fd, bool tty, struct connection *connection,
                uint32_t stream);

/* The command runs: let it have what has come so far. */
void input_start(struct input *input);

/* What the host sends. Returns what it did wrong, or NULL. */
const char *input_put(struct input *input, const uint8_t *data, size_t length, bool eof);

/* Its connection has room again: a WINDOW may be due. */
void input_rearm(struct input *input);

void input_close(struct input *input);

#endif
