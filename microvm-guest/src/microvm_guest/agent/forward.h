/* Forwards: a host's connection carried to a socket of the guest's, and the other way round.
 *
 * A connection to the forward port says once what it wants (docs/reference/agent-protocol.md,
 * "Forwards"). CONNECT: it becomes the stream to that socket. LISTEN: for as long as it is open the
 * agent listens there, and dials the host for each connection that comes. DATAGRAMS: it carries what
 * one program of the guest sends to a UDP port, and what that program is sent. */

#ifndef MICROVM_FORWARD_H
#define MICROVM_FORWARD_H

/* Serve the forward port of AF_VSOCK, for the host alone. */
void forwards_serve_vsock(void);

/* Serve those who come to a listening AF_UNIX socket; its host's port N is at `<its path>_N`. */
void forwards_serve(int fd);

#endif
