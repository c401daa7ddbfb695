#include "acceptor.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define REST_NS 100000000

static void rest(struct acceptor *acceptor)
{
    static const struct itimerspec soon = {.it_value.tv_nsec = REST_NS};
    watch_for(&acceptor->listener, 0);
    timerfd_settime(acceptor->rest.fd, 0, &soon, NULL);
}

static void rested(struct watch *watch, uint32_t events)
{
    struct acceptor *acceptor =
        (struct acceptor *)((char *)watch - offsetof(struct acceptor, rest));
    uint64_t times;
    (void)events;
    if (read(watch->fd, &times, sizeof times) == (ssize_t)sizeof times &&
        !watch_for(&acceptor->listener, EPOLLIN))
        rest(acceptor);
}

static void ready(struct watch *watch, uint32_t events)
{
    struct acceptor *acceptor = (struct acceptor *)watch;
    (void)events;
    int fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        acceptor->accepted(acceptor, fd);
    else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        rest(acceptor);
}

bool acceptor_open(struct acceptor *acceptor, int fd,
                   void (*accepted)(struct acceptor *acceptor, int fd))
{
    acceptor->accepted = accepted;
    watch_open(&acceptor->listener, fd, ready);
    watch_open(&acceptor->rest, timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), rested);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    if (acceptor->rest.fd >= 0 && watch_for(&acceptor->rest, EPOLLIN) &&
        watch_for(&acceptor->listener, EPOLLIN))
        return true;
    acceptor_close(acceptor);
    return false;
}

void acceptor_close(struct acceptor *acceptor)
{
    watch_close(&acceptor->listener);
    watch_close(&acceptor->rest);
}
