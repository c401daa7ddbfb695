/* Names to addresses, without holding up the loop: getaddrinfo(3) in a few threads.
 *
 * For a process that serves nothing but SOCKS: it is the one part of the agent that has threads. */

#ifndef MICROVM_RESOLVER_H
#define MICROVM_RESOLVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define RESOLVER_ADDRESSES 8

struct lookup {
    struct lookup *next;
    void (*done)(struct lookup *); /* the asker's, on the loop; NULL: it has gone */
    void *asker;
    bool waiting; /* no thread has taken it yet */
    char name[256];
    uint16_t port;
    int error; /* errno, or 0 */
    unsigned count;
    struct sockaddr_storage addresses[RESOLVER_ADDRESSES];
};

bool resolver_open(void);

/* Ask for a name, or a numeric address; `done` frees the lookup. NULL when there is no memory.
 * A name fails at once, with the error of the way there, when no name server can be reached. */
struct lookup *resolver_ask(const char *name, uint16_t port, void (*done)(struct lookup *),
                            void *asker);

/* Nobody waits for it any more. */
void resolver_forget(struct lookup *lookup);

#endif
