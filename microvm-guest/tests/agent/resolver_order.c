/* For test_native_agent_resolver.py: resolver.c asked for two names, of which the first has no
 * answer until the second has. Fails if the second waits for the first.
 *
 * A name has been looked up before, so that there is a thread with nothing to do. */

#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "loop.h"
#include "resolver.h"

static struct watch *answers;
static int left;
static sem_t fast_is_done;

void watch_open(struct watch *watch, int fd, void (*ready)(struct watch *, uint32_t))
{
    *watch = (struct watch){.fd = fd, .ready = ready};
    answers = watch;
}

bool watch_for(struct watch *watch, uint32_t events)
{
    (void)watch;
    (void)events;
    return true;
}

/* Without a port it is asked whether it is numeric: then no name server is needed. */
int getaddrinfo(const char *name, const char *port, const struct addrinfo *hints,
                struct addrinfo **found)
{
    struct timespec limit;
    (void)hints;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 10;
    if (port != NULL && strcmp(name, "slow") == 0 && sem_timedwait(&fast_is_done, &limit) != 0)
        exit(1);
    if (port != NULL && strcmp(name, "fast") == 0)
        sem_post(&fast_is_done);
    *found = NULL;
    return 0;
}

void freeaddrinfo(struct addrinfo *found)
{
    (void)found;
}

int __real_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *lock);
int __wrap_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *lock);

/* A thread that is woken gets the lock when others have had it: as it may be on a busy machine. */
int __wrap_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *lock)
{
    int error = __real_pthread_cond_wait(condition, lock);
    pthread_mutex_unlock(lock);
    usleep(50000);
    pthread_mutex_lock(lock);
    return error;
}

static void answered(struct lookup *lookup)
{
    free(lookup);
    left--;
}

static void wait_for_all(void)
{
    while (left > 0) {
        struct pollfd polled = {.fd = answers->fd, .events = POLLIN};
        poll(&polled, 1, -1);
        answers->ready(answers, POLLIN);
    }
}

int main(void)
{
    sem_init(&fast_is_done, 0, 0);
    resolver_open();
    left = 1;
    resolver_ask("first", 80, answered, NULL);
    wait_for_all();
    usleep(100000); /* its thread has come to rest */
    left = 2;
    resolver_ask("slow", 80, answered, NULL);
    resolver_ask("fast", 80, answered, NULL);
    wait_for_all();
    return 0;
}
