/* What the host may ask, as a table: payload bounds, on which stream, and who serves it. */

#ifndef MICROVM_REQUESTS_H
#define MICROVM_REQUESTS_H

#include <stdint.h>

struct connection;

struct frame {
    uint32_t length;
    uint8_t type;
    uint8_t flags;
    uint32_t stream;
    const uint8_t *payload; /* in the connection's buffer */
};

/* What is wrong with a frame by its header alone, or NULL. */
const char *frame_problem(const struct connection *connection, const struct frame *frame,
                          uint16_t reserved);

/* Serve one whole frame. Returns what the host did wrong, or NULL. */
const char *request_serve(struct connection *connection, const struct frame *frame);

/* The agent's side of the greeting; every connection begins with it. */
void hello_send(struct connection *connection);

#endif
