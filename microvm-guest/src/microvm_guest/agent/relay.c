#include "relay.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop.h"

#define RELAY_BYTES 32768

struct relay;

struct side {
    struct watch watch; /* first: the loop hands it back */
    struct relay *relay;
    struct side *other;
    bool ended;       /* nothing more comes from here */
    bool shut;        /* and the other side has been told */
    uint8_t *waiting; /* what has come from here and the other side has not taken yet */
    size_t head, tail;
};

struct relay {
    struct side sides[2];
    void (*ended)(void);
};

/* One thread: between two reads nothing is left in it. */
static uint8_t scratch[RELAY_BYTES];

static size_t pending(const struct side *from)
{
    return from->tail - from->head;
}

static void relay_close(struct relay *relay)
{
    void (*ended)(void) = relay->ended;
    for (int i = 0; i < 2; i++) {
        watch_close(&relay->sides[i].watch);
        free(relay->sides[i].waiting);
    }
    free(relay);
    ended();
}

/* A side that failed took bytes with it. Whoever is on the other must not take what it got for the
 * whole: a TCP socket closed so sends a reset, any other ignores it. */
static void abandon(struct side *failed)
{
    static const struct linger reset = {.l_onoff = 1, .l_linger = 0};
    setsockopt(failed->other->watch.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    relay_close(failed->relay);
}

/* Give the other side what came from here; false when the other side has failed. */
static bool offer(struct side *from, const uint8_t *data, size_t length, size_t *taken)
{
    *taken = 0;
    while (*taken < length) {
        ssize_t sent = send(from->other->watch.fd, data + *taken, length - *taken,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EAGAIN || errno == ENOBUFS;
        *taken += (size_t)sent;
    }
    return true;
}

static bool keep(struct side *from, const uint8_t *data, size_t length)
{
    if (length == 0)
        return true;
    from->waiting = malloc(length);
    if (from->waiting == NULL)
        return false;
    memcpy(from->waiting, data, length);
    from->head = 0;
    from->tail = length;
    return true;
}

/* What must be waited for now; false when the relay is over and gone. */
static bool settle(struct relay *relay)
{
    for (int i = 0; i < 2; i++) {
        struct side *from = &relay->sides[i];
        if (from->ended && !from->shut && pending(from) == 0) {
            shutdown(from->other->watch.fd, SHUT_WR);
            from->shut = true;
        }
    }
    if (relay->sides[0].shut && relay->sides[1].shut) {
        relay_close(relay);
        return false;
    }
    for (int i = 0; i < 2; i++) {
        struct side *side = &relay->sides[i];
        uint32_t events = 0;
        if (!side->ended && pending(side) == 0)
            events |= EPOLLIN;
        if (pending(side->other) > 0)
            events |= EPOLLOUT;
        if (!watch_for(&side->watch, events)) {
            abandon(side); /* no memory for the watch */
            return false;
        }
    }
    return true;
}

/* Send to this side what has waited for it; false when it has failed. */
static bool drain(struct side *side)
{
    struct side *from = side->other;
    size_t taken;
    bool alive = offer(from, from->waiting + from->head, pending(from), &taken);
    from->head += taken;
    if (pending(from) == 0) {
        free(from->waiting);
        from->waiting = NULL;
    }
    return alive;
}

/* Read from this side once, so that each relay has its turn. The side that failed, or NULL. */
static struct side *carry(struct side *side)
{
    size_t taken;
    ssize_t got = recv(side->watch.fd, scratch, sizeof scratch, MSG_DONTWAIT);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? NULL : side;
    if (got == 0) {
        side->ended = true;
        return NULL;
    }
    if (!offer(side, scratch, (size_t)got, &taken))
        return side->other;
    return keep(side, scratch + taken, (size_t)got - taken) ? NULL : side;
}

static void ready(struct watch *watch, uint32_t events)
{
    struct side *side = (struct side *)watch, *failed = NULL;
    if (pending(side->other) > 0 && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) && !drain(side))
        failed = side;
    if (failed == NULL && !side->ended && pending(side) == 0 &&
        (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        failed = carry(side);
    if (failed != NULL)
        abandon(failed);
    else
        settle(side->relay);
}

bool relay_start(int one, int other, void (*ended)(void))
{
    struct relay *relay = calloc(1, sizeof *relay);
    if (relay == NULL) {
        close(one);
        close(other);
        return false;
    }
    relay->ended = ended;
    for (int i = 0; i < 2; i++) {
        relay->sides[i].relay = relay;
        relay->sides[i].other = &relay->sides[1 - i];
        watch_open(&relay->sides[i].watch, i == 0 ? one : other, ready);
    }
    settle(relay);
    return true;
}
