/* A SOCKS5 server (RFC 1928) for one guest: TCP CONNECT, names resolved here, each way of a
 * connection with an end of its own, nothing kept for a connection that is idle.
 *
 * A process of its own with a user of its own, so that a rule of the routing table can be about it
 * alone (ip-rule(8), uidrange): where its only way out is a tunnel, a tunnel that is down lets
 * nothing out, questions to name servers included.
 *
 * docs/dependencies.md says why it is not somebody else's. */

#ifndef MICROVM_SOCKS5_H
#define MICROVM_SOCKS5_H

/* Listen at a numeric address and port (another port if that one is taken) and, for the host alone, at
 * a vsock port (0: none); become the user with that number (0: stay who we are); say
 * "ADDRESS PORT VSOCK-PORT\n" on stdout, with 0 where that port can't be had; and serve. */
_Noreturn void socks5_main(const char *address, const char *port, const char *vsock_port,
                           const char *user);

#endif
