#include "resolver.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "loop.h"

#define MAX_THREADS 16
#define STACK_BYTES (256 * 1024)
#define DNS_PORT 53

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asked = PTHREAD_COND_INITIALIZER;
static struct lookup *queue, **queue_end = &queue; /* under `lock`, as is what follows */
static struct lookup *finished;
static unsigned threads, idle, queued;
static struct watch answers;

/* Whether /etc/hosts has the word anywhere: then no name server is needed. */
static bool is_a_hosts_word(const char *name)
{
    char line[1024];
    bool found = false;
    FILE *file = fopen("/etc/hosts", "re");
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) {
        char *rest = line;
        line[strcspn(line, "#")] = 0;
        for (char *word; !found && (word = strsep(&rest, " \t\r\n")) != NULL;)
            found = strcasecmp(word, name) == 0;
    }
    if (file != NULL)
        fclose(file);
    return found;
}

/* 0, or why a datagram to that name server would not leave. */
static int try_server(const char *text)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_DGRAM}, *found;
    int error = 0;
    if (getaddrinfo(text, "53", &hints, &found) != 0)
        return EINVAL;
    int fd = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) != 0)
        error = errno;
    if (fd >= 0)
        close(fd);
    freeaddrinfo(found);
    return error;
}

/* musl's resolver does not look whether its questions leave, and waits for answers all the same:
 * with a tunnel that is down, ten seconds for what is known at once. */
static int name_servers_error(void)
{
    char line[512], server[128];
    int error = ENETUNREACH; /* there is none */
    FILE *file = fopen("/etc/resolv.conf", "re");
    while (file != NULL && error != 0 && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "nameserver %127s", server) == 1)
            error = try_server(server);
    if (file != NULL)
        fclose(file);
    return error;
}

static bool is_numeric(const char *name)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST}, *found;
    if (getaddrinfo(name, NULL, &hints, &found) != 0)
        return false;
    freeaddrinfo(found);
    return true;
}

static void look_up(struct lookup *lookup)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG}, *found;
    char port[6];
    snprintf(port, sizeof port, "%u", lookup->port);
    if (is_numeric(lookup->name))
        hints.ai_flags = AI_NUMERICHOST;
    else if (!is_a_hosts_word(lookup->name) && (lookup->error = name_servers_error()) != 0)
        return;
    if (getaddrinfo(lookup->name, port, &hints, &found) != 0) {
        lookup->error = EHOSTUNREACH;
        return;
    }
    for (struct addrinfo *it = found; it != NULL && lookup->count < RESOLVER_ADDRESSES;
         it = it->ai_next)
        memcpy(&lookup->addresses[lookup->count++], it->ai_addr, it->ai_addrlen);
    freeaddrinfo(found);
}

static void *work(void *nothing)
{
    (void)nothing;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (queue == NULL) {
            idle++;
            pthread_cond_wait(&asked, &lock);
            idle--;
        }
        struct lookup *lookup = queue;
        queue = lookup->next;
        queued--;
        if (queue == NULL)
            queue_end = &queue;
        lookup->waiting = false;
        pthread_mutex_unlock(&lock);
        look_up(lookup);
        pthread_mutex_lock(&lock);
        lookup->next = finished;
        finished = lookup;
        (void)!write(answers.fd, &(uint64_t){1}, sizeof(uint64_t));
    }
    return NULL;
}

static void answered(struct watch *watch, uint32_t events)
{
    uint64_t count;
    (void)events;
    (void)!read(watch->fd, &count, sizeof count);
    pthread_mutex_lock(&lock);
    struct lookup *next, *all = finished;
    finished = NULL;
    pthread_mutex_unlock(&lock);
    for (struct lookup *lookup = all; lookup != NULL; lookup = next) {
        next = lookup->next;
        if (lookup->done != NULL)
            lookup->done(lookup);
        else
            free(lookup);
    }
}

bool resolver_open(void)
{
    watch_open(&answers, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), answered);
    return answers.fd >= 0 && watch_for(&answers, EPOLLIN);
}

/* Under the lock. An idle one is spoken for by each lookup that is queued. One that can't be had is
 * no matter while there is another. */
static bool have_a_thread(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    if (idle > queued || threads == MAX_THREADS)
        return true;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &attributes, work, NULL) == 0)
        threads++;
    pthread_attr_destroy(&attributes);
    return threads > 0;
}

struct lookup *resolver_ask(const char *name, uint16_t port, void (*done)(struct lookup *),
                            void *asker)
{
    struct lookup *lookup = calloc(1, sizeof *lookup);
    if (lookup == NULL)
        return NULL;
    snprintf(lookup->name, sizeof lookup->name, "%s", name);
    lookup->port = port;
    lookup->done = done;
    lookup->asker = asker;
    lookup->waiting = true;
    pthread_mutex_lock(&lock);
    bool able = have_a_thread();
    if (able) {
        *queue_end = lookup;
        queue_end = &lookup->next;
        queued++;
        pthread_cond_signal(&asked);
    }
    pthread_mutex_unlock(&lock);
    if (able)
        return lookup;
    free(lookup);
    return NULL;
}

void resolver_forget(struct lookup *lookup)
{
    lookup->done = NULL;
    pthread_mutex_lock(&lock);
    bool waiting = lookup->waiting;
    if (waiting) {
        struct lookup **it = &queue;
        while (*it != lookup)
            it = &(*it)->next;
        *it = lookup->next;
        queued--;
        if (queue_end == &lookup->next)
            queue_end = it;
    }
    pthread_mutex_unlock(&lock);
    if (waiting)
        free(lookup);
}
