/* A listening socket that rests for a moment when the system is out of descriptors or memory: level
 * triggered, it would be ready again at once, for ever. */

#ifndef MICROVM_ACCEPTOR_H
#define MICROVM_ACCEPTOR_H

#include <stdbool.h>

#include "loop.h"

struct acceptor {
    struct watch listener; /* first: the loop hands it back */
    struct watch rest;
    void (*accepted)(struct acceptor *acceptor, int fd);
};

/* Hand each connection that comes, non-blocking, to `accepted`, which takes it over. Takes over
 * `fd`. False, and it is closed, when there is no descriptor for the clock. */
bool acceptor_open(struct acceptor *acceptor, int fd,
                   void (*accepted)(struct acceptor *acceptor, int fd));

void acceptor_close(struct acceptor *acceptor);

#endif
