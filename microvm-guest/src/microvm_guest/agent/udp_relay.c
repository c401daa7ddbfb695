#include "udp_relay.h"

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "loop.h"
#include "wire.h"

#define FRAME_BYTES (WIRE_DATAGRAM_BYTES + 65535)

struct udp_relay {
    struct watch host; /* first: the loop hands it back */
    struct watch local;
    bool owned; /* the program is known, and the local socket is connected to it */
    void (*ended)(void);
    size_t sent, pending; /* of `outward`: how much has gone, how much there is */
    size_t received;      /* of `inward` */
    uint8_t outward[FRAME_BYTES], inward[FRAME_BYTES];
};

static void relay_close(struct udp_relay *relay)
{
    void (*ended)(void) = relay->ended;
    watch_close(&relay->host);
    watch_close(&relay->local);
    free(relay);
    ended();
}

/* A frame goes whole: while the host takes no more of it, no datagram is fetched. */
static bool push(struct udp_relay *relay)
{
    while (relay->sent < relay->pending) {
        ssize_t sent = send(relay->host.fd, relay->outward + relay->sent,
                            relay->pending - relay->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0)
            return errno == EAGAIN || errno == EINTR || errno == ENOBUFS;
        relay->sent += (size_t)sent;
    }
    relay->sent = relay->pending = 0;
    return true;
}

static bool fetch(struct udp_relay *relay)
{
    struct sockaddr_storage from;
    socklen_t length = sizeof from;
    ssize_t got = recvfrom(relay->local.fd, relay->outward + WIRE_DATAGRAM_BYTES,
                           FRAME_BYTES - WIRE_DATAGRAM_BYTES, MSG_DONTWAIT,
                           (struct sockaddr *)&from, &length);
    if (got < 0) /* also what ICMP says of a program that has gone */
        return true;
    if (!relay->owned) {
        if (connect(relay->local.fd, (struct sockaddr *)&from, length) != 0)
            return true;
        relay->owned = true;
    }
    put_u16(relay->outward, (uint16_t)got);
    relay->pending = WIRE_DATAGRAM_BYTES + (size_t)got;
    return push(relay);
}

/* Read one frame of the host's, in as many pieces as it comes; a whole one goes to the program. */
static bool deliver(struct udp_relay *relay)
{
    bool headed = relay->received >= WIRE_DATAGRAM_BYTES;
    size_t wanted = WIRE_DATAGRAM_BYTES + (headed ? get_u16(relay->inward) : 0);
    if (relay->received < wanted) {
        ssize_t got = recv(relay->host.fd, relay->inward + relay->received,
                           wanted - relay->received, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return false;
        if (got > 0)
            relay->received += (size_t)got;
        headed = headed || relay->received >= WIRE_DATAGRAM_BYTES;
        wanted = WIRE_DATAGRAM_BYTES + (headed ? get_u16(relay->inward) : 0);
    }
    if (headed && relay->received == wanted) {
        if (relay->owned) /* a datagram may be lost: there is nobody to tell */
            (void)!send(relay->local.fd, relay->inward + WIRE_DATAGRAM_BYTES,
                        wanted - WIRE_DATAGRAM_BYTES, MSG_NOSIGNAL | MSG_DONTWAIT);
        relay->received = 0;
    }
    return true;
}

static void settle(struct udp_relay *relay, bool alive)
{
    uint32_t full = relay->pending > 0;
    if (!alive || !watch_for(&relay->host, EPOLLIN | (full ? EPOLLOUT : 0)) ||
        !watch_for(&relay->local, full ? 0 : EPOLLIN))
        relay_close(relay);
}

static void host_ready(struct watch *watch, uint32_t events)
{
    struct udp_relay *relay = (struct udp_relay *)watch;
    bool alive = true;
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        alive = push(relay);
    if (alive && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
        alive = deliver(relay);
    settle(relay, alive);
}

static void local_ready(struct watch *watch, uint32_t events)
{
    struct udp_relay *relay =
        (struct udp_relay *)((char *)watch - offsetof(struct udp_relay, local));
    (void)events;
    settle(relay, fetch(relay));
}

bool udp_relay_start(int host, int local, void (*ended)(void))
{
    struct udp_relay *relay = calloc(1, sizeof *relay);
    if (relay == NULL) {
        close(host);
        close(local);
        return false;
    }
    relay->ended = ended;
    watch_open(&relay->host, host, host_ready);
    watch_open(&relay->local, local, local_ready);
    settle(relay, true);
    return true;
}
