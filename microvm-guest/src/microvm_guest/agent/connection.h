/* A host's connection: bytes in, frames out, and no more memory than the two buffers made for it.
 *
 * Output of commands is written straight into the out buffer while it holds less than
 * OUT_DATA_BYTES. Past that the connection is `full`: no command's output is read and no frame of
 * the host is served until the host has read some. So what a small answer needs is always there:
 * the rest of the buffer takes the few frames that come unasked (STARTED, WINDOW, EOFs, EXIT). */

#ifndef MICROVM_CONNECTION_H
#define MICROVM_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "loop.h"
#include "wire.h"

#define FRAME_BYTES (WIRE_HEADER_BYTES + WIRE_MAX_PAYLOAD)
#define IN_BYTES (2 * FRAME_BYTES)
#define OUT_DATA_BYTES (4 * FRAME_BYTES)
#define OUT_BYTES (OUT_DATA_BYTES + 128 * (WIRE_MAX_COMMANDS + WIRE_MAX_ATTACHMENTS))

enum connection_state {
    CONNECTION_FREE,
    CONNECTION_DIALLING, /* ours to the host, not established yet */
    CONNECTION_NEW,      /* the host's HELLO has not come */
    CONNECTION_OPEN,
    CONNECTION_CLOSING, /* an ERROR is on its way out; what comes in is thrown away */
};

struct connection {
    struct watch watch;
    enum connection_state state;
    uint64_t opened; /* which one came first, for eviction */
    uint32_t highest_stream;
    bool full;
    bool broken; /* to be closed at the end of the batch */
    bool finished; /* our direction is shut */
    uint8_t *in;
    size_t in_length;
    uint8_t *out;
    size_t out_head, out_tail;
};

/* Serve an established socket; or, dialling, one whose connect() is under way. Takes over `fd`. */
struct connection *connection_open(int fd, bool dialling);

/* Listen for more of them. `host_only`: an AF_VSOCK socket that admits CID 2 alone. */
void connections_listen(int fd, bool host_only);

/* Descriptors have become free: accept again if that had failed. */
void connections_resume_accept(void);

/* After each batch of events: send what was written, close what is broken. */
void connections_flush(void);

unsigned connections_count(void);

/* The connection that was the `opened`-th, if it still is one. */
struct connection *connection_find(uint64_t opened);

/* No more frames: shut our direction of every connection once what is queued has left. */
void connections_finish(void);

/* Room for the payload of one output frame, and how much; NULL while the connection is full. */
uint8_t *connection_room(struct connection *connection, size_t *room);

/* Send the `length` bytes put into the room as one frame. */
void connection_commit(struct connection *connection, uint8_t type, uint8_t flags, uint32_t stream,
                       size_t length);

/* Send a small frame, also while the connection is full. */
void connection_send(struct connection *connection, uint8_t type, uint8_t flags, uint32_t stream,
                     const void *payload, size_t length);

void connection_send_error(struct connection *connection, uint32_t stream, uint32_t code,
                           const char *text);

/* The host broke the protocol: say so, serve nothing more, and close. */
void connection_fail(struct connection *connection, uint32_t code, const char *text);

#endif
