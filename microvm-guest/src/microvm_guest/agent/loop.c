#include "loop.h"

#include <stddef.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "clock.h"

#define BATCH 64

static int epoll_fd = -1;
static struct epoll_event batch[BATCH];
static int batch_next, batch_length;

void loop_open(void)
{
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
}

void watch_open(struct watch *watch, int fd, void (*ready)(struct watch *, uint32_t))
{
    watch->fd = fd;
    watch->events = 0;
    watch->ready = ready;
}

bool watch_for(struct watch *watch, uint32_t events)
{
    if (watch->fd < 0 || events == watch->events)
        return true;
    struct epoll_event event = {.events = events, .data.ptr = watch};
    int operation = watch->events == 0 ? EPOLL_CTL_ADD : events == 0 ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;
    if (epoll_ctl(epoll_fd, operation, watch->fd, &event) != 0)
        return false;
    watch->events = events;
    return true;
}

int watch_release(struct watch *watch)
{
    int fd = watch->fd;
    watch_for(watch, 0);
    watch->fd = -1;
    for (int i = batch_next; i < batch_length; i++)
        if (batch[i].data.ptr == watch)
            batch[i].data.ptr = NULL;
    return fd;
}

void watch_close(struct watch *watch)
{
    int fd = watch_release(watch);
    if (fd >= 0)
        close(fd);
}

static int wait_ms(uint64_t deadline_ns)
{
    if (deadline_ns == 0)
        return -1;
    uint64_t now = monotonic_ns();
    return now >= deadline_ns ? 0 : (int)((deadline_ns - now) / 1000000 + 1);
}

void loop_once(uint64_t deadline_ns)
{
    batch_length = epoll_wait(epoll_fd, batch, BATCH, wait_ms(deadline_ns));
    for (batch_next = 0; batch_next < batch_length;) {
        struct epoll_event event = batch[batch_next++];
        struct watch *watch = event.data.ptr;
        if (watch != NULL && watch->events != 0)
            watch->ready(watch, event.events);
    }
    batch_length = 0;
}
