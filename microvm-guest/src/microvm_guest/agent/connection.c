#include "connection.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "command.h"
#include "requests.h"
#include "vsock.h"

static struct connection connections[WIRE_MAX_CONNECTIONS];
static struct watch listener = {.fd = -1};
static bool listener_host_only;
static uint64_t opened;

#define FOR_EACH_CONNECTION(it)                                                                   \
    for (struct connection *it = connections; it < connections + WIRE_MAX_CONNECTIONS; it++)      \
        if (it->state != CONNECTION_FREE)

static size_t out_pending(const struct connection *connection)
{
    return connection->out_tail - connection->out_head;
}

static bool serves(const struct connection *connection)
{
    return connection->state == CONNECTION_NEW || connection->state == CONNECTION_OPEN;
}

static void await(struct connection *connection)
{
    uint32_t events = 0;
    if (!connection->full && connection->state != CONNECTION_DIALLING)
        events |= EPOLLIN;
    if (out_pending(connection) > 0 || connection->state == CONNECTION_DIALLING)
        events |= EPOLLOUT;
    if (!watch_for(&connection->watch, events))
        connection->broken = true;
}

static void connection_close(struct connection *connection)
{
    commands_disown(connection);
    watch_close(&connection->watch);
    free(connection->in);
    free(connection->out);
    memset(connection, 0, sizeof *connection);
    connection->watch.fd = -1;
    connections_resume_accept();
}

/* --- out --------------------------------------------------------------------------------- */

static uint8_t *out_reserve(struct connection *connection, size_t length)
{
    if (OUT_BYTES - connection->out_tail < length) {
        memmove(connection->out, connection->out + connection->out_head, out_pending(connection));
        connection->out_tail -= connection->out_head;
        connection->out_head = 0;
    }
    return OUT_BYTES - connection->out_tail < length ? NULL : connection->out + connection->out_tail;
}

uint8_t *connection_room(struct connection *connection, size_t *room)
{
    if (out_pending(connection) + FRAME_BYTES > OUT_DATA_BYTES)
        connection->full = true;
    if (connection->full)
        return NULL;
    uint8_t *at = out_reserve(connection, FRAME_BYTES);
    *room = WIRE_MAX_PAYLOAD;
    return at == NULL ? NULL : at + WIRE_HEADER_BYTES;
}

void connection_commit(struct connection *connection, uint8_t type, uint8_t flags, uint32_t stream,
                       size_t length)
{
    uint8_t *header = connection->out + connection->out_tail;
    put_u32(header, (uint32_t)length);
    header[4] = type;
    header[5] = flags;
    put_u16(header + 6, 0);
    put_u32(header + 8, stream);
    connection->out_tail += WIRE_HEADER_BYTES + length;
}

void connection_send(struct connection *connection, uint8_t type, uint8_t flags, uint32_t stream,
                     const void *payload, size_t length)
{
    uint8_t *at = out_reserve(connection, WIRE_HEADER_BYTES + length);
    if (connection->finished || at == NULL) {
        connection->broken = true;
        return;
    }
    if (length > 0)
        memcpy(at + WIRE_HEADER_BYTES, payload, length);
    connection_commit(connection, type, flags, stream, length);
    if (out_pending(connection) + FRAME_BYTES > OUT_DATA_BYTES)
        connection->full = true;
}

void connection_send_error(struct connection *connection, uint32_t stream, uint32_t code,
                           const char *text)
{
    uint8_t payload[4 + WIRE_MAX_ERROR_TEXT];
    size_t length = strnlen(text, WIRE_MAX_ERROR_TEXT);
    put_u32(payload, code);
    memcpy(payload + 4, text, length);
    connection_send(connection, FRAME_ERROR, 0, stream, payload, 4 + length);
}

void connection_fail(struct connection *connection, uint32_t code, const char *text)
{
    if (!serves(connection))
        return;
    connection_send_error(connection, 0, code, text);
    connection->state = CONNECTION_CLOSING; /* its commands end with this batch of events */
}

static void flush(struct connection *connection)
{
    while (out_pending(connection) > 0 && connection->state != CONNECTION_DIALLING) {
        ssize_t sent = send(connection->watch.fd, connection->out + connection->out_head,
                            out_pending(connection), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0) {
            connection->broken |= errno != EAGAIN && errno != ENOBUFS;
            break;
        }
        connection->out_head += (size_t)sent;
    }
    if (out_pending(connection) == 0)
        connection->out_head = connection->out_tail = 0;
}

/* --- in ---------------------------------------------------------------------------------- */

static void process(struct connection *connection)
{
    size_t at = 0;
    while (serves(connection) && !connection->full) {
        uint8_t *header = connection->in + at;
        size_t left = connection->in_length - at;
        if (left < WIRE_HEADER_BYTES)
            break;
        struct frame frame = {
            .length = get_u32(header),
            .type = header[4],
            .flags = header[5],
            .stream = get_u32(header + 8),
            .payload = header + WIRE_HEADER_BYTES,
        };
        const char *wrong = frame_problem(connection, &frame, get_u16(header + 6));
        if (wrong == NULL && left - WIRE_HEADER_BYTES < frame.length)
            break;
        if (wrong == NULL)
            wrong = request_serve(connection, &frame);
        if (wrong != NULL)
            connection_fail(connection, ERROR_PROTOCOL, wrong);
        at += WIRE_HEADER_BYTES + frame.length;
    }
    if (!serves(connection))
        connection->in_length = 0;
    else if (at > 0) {
        connection->in_length -= at;
        memmove(connection->in, connection->in + at, connection->in_length);
    }
}

static void receive(struct connection *connection)
{
    size_t space = IN_BYTES - connection->in_length;
    if (connection->full || space == 0)
        return;
    ssize_t got = recv(connection->watch.fd, connection->in + connection->in_length, space,
                       MSG_DONTWAIT);
    if (got > 0)
        connection->in_length += (size_t)got;
    else if (got == 0 || (errno != EAGAIN && errno != EINTR))
        connection->broken = true;
}

/* Read again what had to wait while the buffer was full: frames first, then commands. */
static void reopen(struct connection *connection)
{
    if (!connection->full || out_pending(connection) + FRAME_BYTES > OUT_DATA_BYTES)
        return;
    connection->full = false;
    process(connection);
    if (!connection->full)
        commands_rearm(connection);
}

static void ready(struct watch *watch, uint32_t events)
{
    struct connection *connection = (struct connection *)watch;
    if (connection->broken)
        return;
    if (connection->state == CONNECTION_DIALLING) {
        connection->broken = !vsock_dialled(watch->fd);
        if (!connection->broken)
            connection->state = CONNECTION_NEW;
        return;
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        receive(connection);
        process(connection);
        if (connection->full && (events & (EPOLLHUP | EPOLLERR)))
            connection->broken = true; /* nobody will read what it is full of */
    }
    /* EPOLLOUT: connections_flush() comes after every batch */
}

void connections_flush(void)
{
    FOR_EACH_CONNECTION (connection) {
        if (connection->state == CONNECTION_CLOSING)
            commands_disown(connection);
        if (!connection->broken)
            flush(connection);
        if (!connection->broken)
            reopen(connection);
        if (!connection->broken && out_pending(connection) == 0 && !connection->finished &&
            connection->state == CONNECTION_CLOSING) {
            shutdown(connection->watch.fd, SHUT_WR);
            connection->finished = true;
        }
        if (!connection->broken)
            await(connection);
        if (connection->broken)
            connection_close(connection);
    }
}

void connections_finish(void)
{
    FOR_EACH_CONNECTION (connection) {
        if (serves(connection)) {
            connection->state = CONNECTION_CLOSING;
        } else if (connection->state == CONNECTION_DIALLING) {
            connection->broken = true;
        }
    }
}

/* --- opening ----------------------------------------------------------------------------- */

static void refuse(int fd)
{
    static const char text[] = "The agent serves as many connections as it can.";
    uint8_t raw[WIRE_HEADER_BYTES + 4 + sizeof text - 1] = {4 + sizeof text - 1, 0, 0, 0, FRAME_ERROR};
    put_u32(raw + WIRE_HEADER_BYTES, ERROR_BUSY);
    memcpy(raw + WIRE_HEADER_BYTES + 4, text, sizeof text - 1);
    send(fd, raw, sizeof raw, MSG_NOSIGNAL | MSG_DONTWAIT);
    close(fd);
}

/* Its end has come but not been served yet: an accept is often served before it. */
static bool is_lost(const struct connection *connection)
{
    char byte;
    return recv(connection->watch.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

struct connection *connection_open(int fd, bool dialling)
{
    struct connection *chosen = NULL;
    for (struct connection *it = connections; it < connections + WIRE_MAX_CONNECTIONS; it++) {
        if (it->state == CONNECTION_FREE) {
            chosen = it;
            break;
        }
        /* none free: the one that has said nothing for longest gives way */
        if (it->state != CONNECTION_OPEN && (chosen == NULL || it->opened < chosen->opened))
            chosen = it;
    }
    FOR_EACH_CONNECTION (it)
        if (chosen == NULL && is_lost(it))
            chosen = it;
    if (chosen == NULL) {
        refuse(fd);
        return NULL;
    }
    if (chosen->state != CONNECTION_FREE)
        connection_close(chosen);
    chosen->in = malloc(IN_BYTES);
    chosen->out = malloc(OUT_BYTES);
    if (chosen->in == NULL || chosen->out == NULL) {
        free(chosen->in);
        free(chosen->out);
        chosen->in = chosen->out = NULL;
        close(fd);
        return NULL;
    }
    chosen->opened = ++opened;
    chosen->state = dialling ? CONNECTION_DIALLING : CONNECTION_NEW;
    watch_open(&chosen->watch, fd, ready);
    hello_send(chosen);
    await(chosen);
    return chosen;
}

static void accept_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    int fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            watch_for(watch, 0); /* out of descriptors: until some are free again */
        return;
    }
    if (listener_host_only && !vsock_peer_is_host(fd)) {
        close(fd);
        return;
    }
    connection_open(fd, false);
}

void connections_listen(int fd, bool host_only)
{
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    listener_host_only = host_only;
    watch_open(&listener, fd, accept_ready);
    watch_for(&listener, EPOLLIN);
}

void connections_resume_accept(void)
{
    watch_for(&listener, EPOLLIN);
}

struct connection *connection_find(uint64_t number)
{
    FOR_EACH_CONNECTION (connection)
        if (connection->opened == number)
            return connection;
    return NULL;
}

unsigned connections_count(void)
{
    unsigned count = 0;
    FOR_EACH_CONNECTION (connection)
        count++;
    return count;
}
