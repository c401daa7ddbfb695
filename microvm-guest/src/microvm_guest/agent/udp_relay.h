/* Datagrams of one program in the guest, framed on the host's stream: u16 length, the datagram.
 *
 * The first program that sends is whose relay it is: nobody else's datagrams are read from then on,
 * and the host's go to it. Bounded to one datagram each way; more wait where they are, and the
 * kernel drops what nobody fetches, as it does with any datagram. */

#ifndef MICROVM_UDP_RELAY_H
#define MICROVM_UDP_RELAY_H

#include <stdbool.h>

/* Relay between the host's connected socket and a bound UDP socket, both non-blocking, until the
 * host hangs up; then both are closed and `ended` is called, once. Takes over both. False, and both
 * are closed, when there is no memory; `ended` is then not called. */
bool udp_relay_start(int host, int local, void (*ended)(void));

#endif
