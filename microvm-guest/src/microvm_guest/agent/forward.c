#include "forward.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "acceptor.h"
#include "address.h"
#include "bytes.h"
#include "relay.h"
#include "system.h"
#include "udp_relay.h"
#include "vsock.h"
#include "wire.h"

enum forward_state {
    FORWARD_ASKED,      /* the host has yet to say all of what it wants */
    FORWARD_CONNECTING, /* to the guest's socket */
    FORWARD_DIALLING,   /* the host, for a connection that came */
    FORWARD_LISTENING,
};

struct forward {
    struct watch host;  /* first: the loop hands it back */
    struct watch local; /* the guest's socket, while its connect() is under way */
    struct acceptor acceptor;
    enum forward_state state;
    uint8_t request[WIRE_FORWARD_BYTES + WIRE_MAX_ADDRESS + 1];
    size_t length;
};

static struct acceptor door = {.listener.fd = -1};
static bool host_only;
static struct sockaddr_un beside; /* where the host's ports are when there is no vsock */
static unsigned in_use;           /* forwards, and the relays that they became */

static void one_less(void)
{
    in_use--;
}

static struct forward *from_local(struct watch *watch)
{
    return (struct forward *)((char *)watch - offsetof(struct forward, local));
}

static char *address_of(struct forward *forward)
{
    return (char *)forward->request + WIRE_FORWARD_BYTES;
}

static void forward_close(struct forward *forward)
{
    if (forward->state == FORWARD_LISTENING) {
        acceptor_close(&forward->acceptor);
        if (forward->request[1] == FORWARD_UNIX)
            unlink(address_of(forward));
    }
    watch_close(&forward->local);
    watch_close(&forward->host);
    free(forward);
    one_less();
}

/* The first bytes on a fresh socket: they fit, or the socket has failed. */
static bool answer(int fd, int error, uint16_t port)
{
    uint8_t raw[WIRE_FORWARD_REPLY_BYTES];
    put_u32(raw, (uint32_t)error);
    put_u32(raw + 4, port);
    return send(fd, raw, sizeof raw, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof raw;
}

static void refuse(struct forward *forward, int error)
{
    answer(forward->host.fd, error, 0);
    forward_close(forward);
}

/* Both sockets are connected: from here on they are a relay's. */
static void join(struct forward *forward)
{
    int host = watch_release(&forward->host), local = watch_release(&forward->local);
    free(forward);
    if (!relay_start(host, local, one_less))
        one_less();
}

static struct forward *forward_new(enum forward_state state, int host, int local,
                                   void (*host_ready)(struct watch *, uint32_t),
                                   void (*local_ready)(struct watch *, uint32_t))
{
    struct forward *forward = in_use < WIRE_MAX_FORWARDS ? calloc(1, sizeof *forward) : NULL;
    if (forward == NULL)
        return NULL;
    in_use++;
    forward->state = state;
    watch_open(&forward->host, host, host_ready);
    watch_open(&forward->local, local, local_ready);
    return forward;
}

/* --- CONNECT ----------------------------------------------------------------------------- */

static void local_ready(struct watch *watch, uint32_t events)
{
    struct forward *forward = from_local(watch);
    int error = 0;
    socklen_t length = sizeof error;
    (void)events;
    getsockopt(watch->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0)
        refuse(forward, error);
    else if (!answer(forward->host.fd, 0, 0))
        forward_close(forward);
    else
        join(forward);
}

static void serve_connect(struct forward *forward, uint8_t family, uint16_t port)
{
    int fd = address_connect(family, address_of(forward), port);
    if (fd < 0) {
        refuse(forward, errno);
        return;
    }
    watch_open(&forward->local, fd, local_ready);
    forward->state = FORWARD_CONNECTING;
    watch_for(&forward->host, 0); /* what it sends meanwhile is the stream's */
    if (!watch_for(&forward->local, EPOLLOUT))
        refuse(forward, ENOMEM);
}

/* --- LISTEN ------------------------------------------------------------------------------ */

static void dialled(struct watch *watch, uint32_t events)
{
    struct forward *forward = (struct forward *)watch;
    (void)events;
    if (vsock_dialled(watch->fd))
        join(forward);
    else
        forward_close(forward);
}

static int dial(uint32_t port)
{
    if (host_only)
        return vsock_dial(port);
    char path[sizeof beside.sun_path + 12];
    snprintf(path, sizeof path, "%s_%u", beside.sun_path, port);
    return address_connect(FORWARD_UNIX, path, 0);
}

static void local_accepted(struct acceptor *acceptor, int fd)
{
    struct forward *listening =
        (struct forward *)((char *)acceptor - offsetof(struct forward, acceptor));
    struct forward *forward = forward_new(FORWARD_DIALLING, -1, fd, NULL, NULL);
    if (forward == NULL) {
        close(fd);
        return;
    }
    int host = dial(get_u32(listening->request + 8));
    watch_open(&forward->host, host, dialled);
    if (host < 0 || !watch_for(&forward->host, EPOLLOUT))
        forward_close(forward);
}

static void serve_listen(struct forward *forward, uint8_t family, uint16_t port)
{
    int fd = address_listen(family, address_of(forward), &port);
    if (fd < 0) {
        refuse(forward, errno);
        return;
    }
    bool open = acceptor_open(&forward->acceptor, fd, local_accepted);
    if (!open && family == FORWARD_UNIX)
        unlink(address_of(forward));
    if (!open) {
        refuse(forward, EMFILE);
        return;
    }
    forward->state = FORWARD_LISTENING;
    if (!answer(forward->host.fd, 0, port))
        forward_close(forward);
}

/* --- DATAGRAMS --------------------------------------------------------------------------- */

static void serve_datagrams(struct forward *forward, uint8_t family, uint16_t port)
{
    int fd = -1;
    errno = EINVAL;
    if (family == FORWARD_TCP) /* that is, IP */
        fd = address_bind(address_of(forward), &port);
    if (fd < 0) {
        refuse(forward, errno);
        return;
    }
    bool said = answer(forward->host.fd, 0, port);
    int host = watch_release(&forward->host);
    free(forward);
    if (!said) {
        close(host);
        close(fd);
        one_less();
    } else if (!udp_relay_start(host, fd, one_less)) {
        one_less();
    }
}

/* --- what the host asks ------------------------------------------------------------------ */

static void serve(struct forward *forward)
{
    const uint8_t *request = forward->request;
    uint8_t family = request[1];
    uint16_t length = get_u16(request + 2), port = get_u16(request + 4);
    bool known = family == FORWARD_TCP || family == FORWARD_UNIX;
    if (!known || get_u16(request + 6) != 0 || memchr(address_of(forward), 0, length) != NULL)
        refuse(forward, EINVAL);
    else if (request[0] == FORWARD_CONNECT && get_u32(request + 8) == 0)
        serve_connect(forward, family, port);
    else if (request[0] == FORWARD_LISTEN)
        serve_listen(forward, family, port);
    else if (request[0] == FORWARD_DATAGRAMS && get_u32(request + 8) == 0)
        serve_datagrams(forward, family, port);
    else
        refuse(forward, EINVAL);
}

/* No byte beyond the request is read: it is the stream's. */
static void read_request(struct forward *forward)
{
    bool headed = forward->length >= WIRE_FORWARD_BYTES;
    uint16_t address = headed ? get_u16(forward->request + 2) : 0;
    if (headed && (address == 0 || address > WIRE_MAX_ADDRESS)) {
        refuse(forward, EINVAL);
        return;
    }
    size_t wanted = WIRE_FORWARD_BYTES + address;
    ssize_t got = recv(forward->host.fd, forward->request + forward->length,
                       wanted - forward->length, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
        forward_close(forward);
        return;
    }
    if (got < 0)
        return;
    forward->length += (size_t)got;
    if (forward->length < wanted)
        return;
    if (headed)
        serve(forward);
    else
        read_request(forward); /* the address is next */
}

static void host_ready(struct watch *watch, uint32_t events)
{
    struct forward *forward = (struct forward *)watch;
    (void)events;
    if (forward->state == FORWARD_ASKED)
        read_request(forward);
    else /* LISTENING: its end, or bytes that nobody asked for */
        forward_close(forward);
}

static void host_accepted(struct acceptor *acceptor, int fd)
{
    (void)acceptor;
    if (host_only && !vsock_peer_is_host(fd)) {
        close(fd);
        return;
    }
    struct forward *forward = forward_new(FORWARD_ASKED, fd, -1, host_ready, NULL);
    if (forward == NULL) {
        answer(fd, EMFILE, 0);
        close(fd);
        return;
    }
    if (!watch_for(&forward->host, EPOLLIN))
        forward_close(forward);
}

void forwards_serve(int fd)
{
    socklen_t length = sizeof beside;
    getsockname(fd, (struct sockaddr *)&beside, &length);
    if (!acceptor_open(&door, fd, host_accepted))
        system_log("can't serve", "forwards");
}

void forwards_serve_vsock(void)
{
    int fd = vsock_listen(system_option("forward_port", WIRE_FORWARD_PORT), WIRE_MAX_FORWARDS);
    host_only = true;
    if (fd < 0 || !acceptor_open(&door, fd, host_accepted))
        system_log("can't listen for", "forwards");
}
