#include "socks5.h"

#include <errno.h>
#include <grp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "acceptor.h"
#include "address.h"
#include "clock.h"
#include "loop.h"
#include "relay.h"
#include "resolver.h"
#include "socks5_message.h"
#include "system.h"
#include "vsock.h"
#include "wire.h"

#define MAX_CLIENTS 2048  /* connections under way, and those that are carried */
#define MAX_HALF_OPEN 256 /* that have not said what they want: one more, and the oldest goes */
#define SECOND_NS 1000000000ull
#define HANDSHAKE_NS (10 * SECOND_NS)
#define CONNECT_NS (60 * SECOND_NS) /* all of a name's addresses together */
#define ATTEMPT_NS (10 * SECOND_NS) /* one of several */
#define LOOK_NS SECOND_NS           /* whether there still is a way: a VPN's may go meanwhile */

enum client_state { GREETING, REQUEST, RESOLVING, CONNECTING };

struct client {
    struct watch in; /* first: the loop hands it back */
    struct watch out;
    struct client *older, *newer;
    enum client_state state;
    uint64_t deadline, next_attempt, next_look;
    struct lookup *lookup;
    unsigned tried;
    int error; /* of the attempts so far */
    size_t length;
    uint8_t message[SOCKS5_MAX_MESSAGE];
};

static struct acceptor door, host_door;
static struct client *oldest, *newest; /* those that are not carried yet */
static unsigned clients, half_open;

static void one_less(void)
{
    clients--;
}

static bool is_half_open(const struct client *client)
{
    return client->state == GREETING || client->state == REQUEST;
}

/* Out of the list, with what only a connection under way has; its sockets are the caller's. */
static void leave(struct client *client)
{
    *(client->older ? &client->older->newer : &oldest) = client->newer;
    *(client->newer ? &client->newer->older : &newest) = client->older;
    if (is_half_open(client))
        half_open--;
    if (client->lookup != NULL && client->state == RESOLVING)
        resolver_forget(client->lookup);
    else
        free(client->lookup);
}

static void client_close(struct client *client)
{
    leave(client);
    watch_close(&client->out);
    watch_close(&client->in);
    free(client);
    one_less();
}

/* The few first bytes on a fresh socket: they fit, or the socket has failed. */
static bool say(struct client *client, const void *data, size_t length)
{
    return send(client->in.fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)length;
}

static bool say_reply(struct client *client, enum socks5_reply reply,
                      const struct sockaddr_storage *bound)
{
    uint8_t raw[SOCKS5_MAX_REPLY];
    return say(client, raw, socks5_write_reply(raw, reply, bound));
}

static void refuse(struct client *client, enum socks5_reply reply)
{
    say_reply(client, reply, NULL);
    client_close(client);
}

/* --- connecting -------------------------------------------------------------------------- */

static void connected(struct client *client)
{
    static const int on = 1;
    struct sockaddr_storage bound = {.ss_family = AF_INET};
    socklen_t length = sizeof bound;
    getsockname(client->out.fd, (struct sockaddr *)&bound, &length);
    setsockopt(client->out.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(client->in.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (!say_reply(client, SOCKS5_SUCCEEDED, &bound)) {
        client_close(client);
        return;
    }
    leave(client);
    int in = watch_release(&client->in), out = watch_release(&client->out);
    free(client);
    if (!relay_start(in, out, one_less))
        one_less();
}

/* What the first address that could be reached said tells more than that another can't be. */
static void failed(struct client *client, int error)
{
    if (client->error == 0 || socks5_reply_for(error) != SOCKS5_NETWORK_UNREACHABLE)
        client->error = error;
    watch_close(&client->out);
}

/* The kernel goes on knocking where there is no way any more. A datagram socket's connect(2) sends
 * nothing, and says at once that nothing can be sent. */
static bool way_is_gone(const struct sockaddr_storage *to, socklen_t length)
{
    int fd = socket(to->ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool gone = fd >= 0 && connect(fd, (const struct sockaddr *)to, length) != 0 &&
                (errno == ENETUNREACH || errno == EHOSTUNREACH);
    if (fd >= 0)
        close(fd);
    return gone;
}

static socklen_t address_length(const struct sockaddr_storage *address)
{
    return address->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                          : sizeof(struct sockaddr_in);
}

static void out_ready(struct watch *watch, uint32_t events);

static void try_next(struct client *client)
{
    const struct lookup *lookup = client->lookup;
    while (client->tried < lookup->count) {
        const struct sockaddr_storage *to = &lookup->addresses[client->tried++];
        int fd = socket(to->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        watch_open(&client->out, fd, out_ready);
        if (fd >= 0 &&
            (connect(fd, (const struct sockaddr *)to, address_length(to)) == 0 ||
             errno == EINPROGRESS) &&
            watch_for(&client->out, EPOLLOUT)) {
            uint64_t now = monotonic_ns();
            client->next_attempt = client->tried < lookup->count ? now + ATTEMPT_NS : 0;
            client->next_look = now + LOOK_NS;
            return;
        }
        failed(client, errno);
    }
    refuse(client, socks5_reply_for(client->error));
}

static void out_ready(struct watch *watch, uint32_t events)
{
    struct client *client = (struct client *)((char *)watch - offsetof(struct client, out));
    int error = 0;
    socklen_t length = sizeof error;
    (void)events;
    getsockopt(watch->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error == 0) {
        connected(client);
        return;
    }
    failed(client, error);
    try_next(client);
}

static void resolved(struct lookup *lookup)
{
    struct client *client = lookup->asker;
    client->state = CONNECTING;
    client->error = lookup->error;
    try_next(client);
}

/* An address needs nobody to ask. */
static void take_address(struct client *client, const struct sockaddr_storage *address)
{
    struct lookup *lookup = client->lookup = calloc(1, sizeof *lookup);
    if (lookup == NULL) {
        refuse(client, SOCKS5_GENERAL_FAILURE);
        return;
    }
    lookup->addresses[lookup->count++] = *address;
    lookup->asker = client;
    resolved(lookup);
}

static void resolve(struct client *client, const char *name, uint16_t port)
{
    client->lookup = resolver_ask(name, port, resolved, client);
    if (client->lookup == NULL)
        refuse(client, SOCKS5_GENERAL_FAILURE);
}

/* --- the handshake ----------------------------------------------------------------------- */

static void serve_greeting(struct client *client)
{
    uint8_t answer[2];
    bool accepted = socks5_accepts(client->message, answer);
    client->length = 0;
    if (say(client, answer, sizeof answer) && accepted)
        client->state = REQUEST;
    else
        client_close(client);
}

static void serve_request(struct client *client)
{
    struct socks5_request request;
    enum socks5_reply reply = socks5_read(client->message, &request);
    if (reply != SOCKS5_SUCCEEDED) {
        refuse(client, reply);
        return;
    }
    half_open--;
    client->state = RESOLVING;
    client->deadline = monotonic_ns() + CONNECT_NS;
    watch_for(&client->in, 0); /* what it sends meanwhile is the stream's */
    if (request.name[0] == 0)
        take_address(client, &request.address);
    else
        resolve(client, request.name, request.port);
}

static size_t wanted(const struct client *client)
{
    return client->state == GREETING ? socks5_greeting_length(client->message, client->length)
                                     : socks5_request_length(client->message, client->length);
}

/* Whether what has come so far may become a message. A client that may not be served is gone. */
static bool may_go_on(struct client *client)
{
    enum socks5_reply reply = SOCKS5_SUCCEEDED;
    if (client->state == REQUEST)
        reply = socks5_check(client->message, client->length);
    else if (client->length > 0 && client->message[0] != SOCKS5_VERSION) {
        client_close(client); /* SOCKS4, HTTP: what an answer would look like is not for us to guess */
        return false;
    }
    if (reply != SOCKS5_SUCCEEDED)
        refuse(client, reply);
    return reply == SOCKS5_SUCCEEDED;
}

/* Read what is there of one message, and no byte beyond it. False when the client is gone. */
static bool hear(struct client *client)
{
    while (may_go_on(client)) {
        size_t all = wanted(client);
        if (client->length == all)
            return true;
        ssize_t got = recv(client->in.fd, client->message + client->length, all - client->length,
                           MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return true;
        if (got <= 0) {
            client_close(client);
            return false;
        }
        client->length += (size_t)got;
    }
    return false;
}

static void in_ready(struct watch *watch, uint32_t events)
{
    struct client *client = (struct client *)watch;
    (void)events;
    if (!hear(client) || client->length != wanted(client))
        return;
    if (client->state == GREETING)
        serve_greeting(client);
    else
        serve_request(client);
}

static void accepted(struct acceptor *acceptor, int fd)
{
    if (acceptor == &host_door && !vsock_peer_is_host(fd)) {
        close(fd);
        return;
    }
    struct client *client = clients < MAX_CLIENTS ? calloc(1, sizeof *client) : NULL;
    if (client == NULL) {
        close(fd);
        return;
    }
    watch_open(&client->in, fd, in_ready);
    watch_open(&client->out, -1, out_ready);
    client->deadline = monotonic_ns() + HANDSHAKE_NS;
    client->older = newest;
    *(newest ? &newest->newer : &oldest) = client;
    newest = client;
    clients++;
    half_open++;
    if (!watch_for(&client->in, EPOLLIN)) {
        client_close(client);
        return;
    }
    if (half_open > MAX_HALF_OPEN) {
        struct client *first = oldest;
        while (!is_half_open(first))
            first = first->newer;
        client_close(first);
    }
}

/* --- time -------------------------------------------------------------------------------- */

static uint64_t first_deadline(void)
{
    uint64_t first = 0;
    for (struct client *it = oldest; it != NULL; it = it->newer) {
        if (first == 0 || it->deadline < first)
            first = it->deadline;
        if (it->state == CONNECTING && it->next_attempt != 0 && it->next_attempt < first)
            first = it->next_attempt;
        if (it->state == CONNECTING && it->next_look < first)
            first = it->next_look;
    }
    return first;
}

static void look(struct client *client, uint64_t now)
{
    const struct sockaddr_storage *to = &client->lookup->addresses[client->tried - 1];
    client->next_look = now + LOOK_NS;
    if (way_is_gone(to, address_length(to))) {
        failed(client, EHOSTUNREACH);
        try_next(client);
    }
}

static void expire(void)
{
    uint64_t now = monotonic_ns();
    struct client *newer;
    for (struct client *it = oldest; it != NULL; it = newer) {
        newer = it->newer;
        if (now >= it->deadline && is_half_open(it))
            client_close(it);
        else if (now >= it->deadline)
            refuse(it, SOCKS5_HOST_UNREACHABLE);
        else if (it->state == CONNECTING && it->next_attempt != 0 && now >= it->next_attempt) {
            failed(it, ETIMEDOUT);
            try_next(it);
        } else if (it->state == CONNECTING && now >= it->next_look)
            look(it, now);
    }
}

static _Noreturn void give_up(const char *what, const char *which)
{
    system_log(what, which);
    exit(1);
}

_Noreturn void socks5_main(const char *address, const char *port, const char *vsock_port,
                           const char *user)
{
    uint16_t number = (uint16_t)strtoul(port, NULL, 10);
    unsigned host_port = (unsigned)strtoul(vsock_port, NULL, 10);
    unsigned long uid = strtoul(user, NULL, 10);
    int fd = address_listen(FORWARD_TCP, address, &number);
    if (fd < 0 && errno == EADDRINUSE) {
        number = 0;
        fd = address_listen(FORWARD_TCP, address, &number);
    }
    if (fd < 0)
        give_up("can't listen at", address);
    /* The host comes straight here: through the agent's forwards each byte would be copied twice. */
    int host = host_port == 0 ? -1 : vsock_listen(host_port, SOMAXCONN);
    signal(SIGPIPE, SIG_IGN);
    system_raise_limits();
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (uid != 0 && (setgroups(0, NULL) != 0 || setgid((gid_t)uid) != 0 || setuid((uid_t)uid) != 0))
        give_up("can't become user", user);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* after it: becoming another user forgets it (prctl(2)) */
    loop_open();
    if (!resolver_open() || !acceptor_open(&door, fd, accepted) ||
        (host >= 0 && !acceptor_open(&host_door, host, accepted)))
        give_up("can't serve", "SOCKS5");
    printf("%s %u %u\n", address, number, host >= 0 ? host_port : 0);
    fflush(stdout);
    for (;;) {
        loop_once(first_deadline());
        expire();
    }
}
