/* AF_VSOCK: the guest's side of the channel to the host. */

#ifndef MICROVM_VSOCK_H
#define MICROVM_VSOCK_H

#include <stdbool.h>
#include <stdint.h>

/* A socket that listens on `port`, or -1 with errno. */
int vsock_listen(uint32_t port, int backlog);

/* A socket whose connect() to the host's `port` is under way, or -1 with errno. */
int vsock_dial(uint32_t port);

/* Whether a connect() that was under way has come to a connection. */
bool vsock_dialled(int fd);

/* Whether the other end is the host, rather than a process of this guest. */
bool vsock_peer_is_host(int fd);

#endif
