#include "requests.h"

#include <stdbool.h>
#include <string.h>

#include "bytes.h"
#include "clock.h"
#include "command.h"
#include "connection.h"
#include "fields.h"
#include "jobs.h"
#include "notice.h"
#include "shutdown.h"
#include "status.h"

/* Unknown tags are skipped. One that comes twice: the last one counts. */
static const char *serve_hello(struct connection *connection, const struct frame *frame)
{
    if (memcmp(frame->payload, WIRE_MAGIC, WIRE_MAGIC_BYTES) != 0)
        return "The HELLO does not begin with the protocol's magic.";
    if (get_u16(frame->payload + WIRE_MAGIC_BYTES) != WIRE_MAJOR)
        return "The host speaks another major version of the protocol.";
    struct field_reader reader = {.next = frame->payload + WIRE_MAGIC_BYTES + 4,
                                  .end = frame->payload + frame->length};
    struct field field;
    while (field_next(&reader, &field))
        if (field.tag == FIELD_WALL_TIME && field.length == 8)
            clock_hint(get_u64(field.value));
    if (reader.malformed)
        return "The HELLO ends inside a field.";
    connection->state = CONNECTION_OPEN;
    return NULL;
}

void hello_send(struct connection *connection)
{
    uint8_t payload[256];
    memcpy(payload, WIRE_MAGIC, WIRE_MAGIC_BYTES);
    put_u16(payload + WIRE_MAGIC_BYTES, WIRE_MAJOR);
    put_u16(payload + WIRE_MAGIC_BYTES + 2, WIRE_MINOR);
    struct field_writer writer = {.start = payload + WIRE_MAGIC_BYTES + 4,
                                  .capacity = sizeof payload - WIRE_MAGIC_BYTES - 4};
    status_put_identity(&writer);
    field_put_u64(&writer, FIELD_BOOT_NS, monotonic_ns());
    field_put_u32(&writer, FIELD_STDIN_WINDOW, WIRE_STDIN_WINDOW);
    field_put_u32(&writer, FIELD_MAX_COMMANDS, WIRE_MAX_COMMANDS);
    connection_send(connection, FRAME_HELLO, 0, 0, payload, WIRE_MAGIC_BYTES + 4 + writer.length);
}

static const char *serve_ping(struct connection *connection, const struct frame *frame)
{
    connection_send(connection, FRAME_PONG, 0, 0, frame->payload, frame->length);
    return NULL;
}

static const char *serve_status(struct connection *connection, const struct frame *frame)
{
    (void)frame;
    uint8_t payload[512];
    struct field_writer writer = {.start = payload, .capacity = sizeof payload};
    status_put_identity(&writer);
    status_put_system(&writer);
    connection_send(connection, FRAME_STATUS, 0, 0, payload, writer.length);
    return NULL;
}

static const char *serve_set_clock(struct connection *connection, const struct frame *frame)
{
    (void)connection;
    clock_set(get_u64(frame->payload));
    return NULL;
}

static const char *serve_jobs(struct connection *connection, const struct frame *frame)
{
    (void)frame;
    jobs_tell(connection);
    return NULL;
}

static const char *serve_notice(struct connection *connection, const struct frame *frame)
{
    return notice_serve(connection, get_u32(frame->payload), get_u64(frame->payload + 4));
}

static const char *serve_shutdown(struct connection *connection, const struct frame *frame)
{
    connection_send(connection, FRAME_SHUTDOWN, 0, 0, NULL, 0);
    shutdown_begin((frame->flags & FLAG_POWER_OFF) != 0);
    return NULL;
}

static const char *serve_run(struct connection *connection, const struct frame *frame)
{
    if (frame->stream <= connection->highest_stream)
        return "A RUN names a stream that has been used already.";
    connection->highest_stream = frame->stream;
    return command_run(connection, frame);
}

static const char *serve_attach(struct connection *connection, const struct frame *frame)
{
    if (frame->stream <= connection->highest_stream)
        return "An ATTACH names a stream that has been used already.";
    connection->highest_stream = frame->stream;
    return job_attach(connection, frame);
}

/* A frame for a command that has ended crossed its EXIT on the way: legal, and too late. */
#define COMMAND_OR_RETURN(name)                                                                   \
    struct command *name = command_find(connection, frame->stream);                               \
    if (name == NULL)                                                                             \
        return frame->stream <= connection->highest_stream                                        \
                   ? NULL                                                                         \
                   : "A frame names a stream that no RUN has opened."

static const char *serve_stdin(struct connection *connection, const struct frame *frame)
{
    COMMAND_OR_RETURN(command);
    return command_stdin(command, frame->payload, frame->length, (frame->flags & FLAG_EOF) != 0);
}

static const char *serve_window(struct connection *connection, const struct frame *frame)
{
    struct attachment *attachment = attachment_find(connection, frame->stream);
    if (attachment != NULL)
        return attachment_window(attachment, get_u32(frame->payload), get_u32(frame->payload + 4));
    COMMAND_OR_RETURN(command);
    return command_window(command, get_u32(frame->payload), get_u32(frame->payload + 4));
}

static const char *serve_kill(struct connection *connection, const struct frame *frame)
{
    struct attachment *attachment = attachment_find(connection, frame->stream);
    if (attachment != NULL)
        return attachment_signal(attachment, get_u32(frame->payload));
    COMMAND_OR_RETURN(command);
    return command_signal(command, get_u32(frame->payload));
}

static const char *serve_resize(struct connection *connection, const struct frame *frame)
{
    COMMAND_OR_RETURN(command);
    command_resize(command, get_u16(frame->payload), get_u16(frame->payload + 2));
    return NULL;
}

static const char *serve_close(struct connection *connection, const struct frame *frame)
{
    struct attachment *attachment = attachment_find(connection, frame->stream);
    if (attachment != NULL) {
        attachment_release(attachment, (frame->flags & FLAG_FORGET) != 0);
        return NULL;
    }
    COMMAND_OR_RETURN(command);
    command_release(command);
    return NULL;
}

struct request {
    const char *(*serve)(struct connection *, const struct frame *);
    uint32_t min, max; /* payload bytes */
    bool on_stream;    /* or on stream 0 */
    uint8_t flags;     /* those allowed */
};

static const struct request requests[] = {
    [FRAME_HELLO] = {serve_hello, WIRE_MAGIC_BYTES + 4, 4096, false, 0},
    [FRAME_PING] = {serve_ping, 8, 8, false, 0},
    [FRAME_STATUS] = {serve_status, 0, 0, false, 0},
    [FRAME_SET_CLOCK] = {serve_set_clock, 8, 8, false, 0},
    [FRAME_SHUTDOWN] = {serve_shutdown, 0, 0, false, FLAG_POWER_OFF},
    [FRAME_JOBS] = {serve_jobs, 0, 0, false, 0},
    [FRAME_NOTICE] = {serve_notice, 12, 12, false, 0},
    [FRAME_RUN] = {serve_run, 4, WIRE_MAX_PAYLOAD, true, 0},
    [FRAME_STDIN] = {serve_stdin, 0, WIRE_MAX_PAYLOAD, true, FLAG_EOF},
    [FRAME_WINDOW] = {serve_window, 8, 8, true, 0},
    [FRAME_KILL] = {serve_kill, 4, 4, true, 0},
    [FRAME_RESIZE] = {serve_resize, 4, 4, true, 0},
    [FRAME_CLOSE] = {serve_close, 0, 0, true, FLAG_FORGET},
    [FRAME_ATTACH] = {serve_attach, 8, 256, true, FLAG_FORGET},
};

const char *frame_problem(const struct connection *connection, const struct frame *frame,
                          uint16_t reserved)
{
    if (frame->type >= sizeof requests / sizeof requests[0] || requests[frame->type].serve == NULL)
        return "The frame's type is not one a host sends.";
    const struct request *request = &requests[frame->type];
    if ((frame->type == FRAME_HELLO) != (connection->state == CONNECTION_NEW))
        return "HELLO comes first, and once.";
    if (frame->length < request->min || frame->length > request->max)
        return "The frame's payload is not as long as its type demands.";
    if (reserved != 0 || (frame->flags & ~request->flags) != 0)
        return "The frame has bits set that have no meaning.";
    if ((frame->stream != 0) != request->on_stream)
        return "The frame's stream does not fit its type.";
    return NULL;
}

const char *request_serve(struct connection *connection, const struct frame *frame)
{
    return requests[frame->type].serve(connection, frame);
}
