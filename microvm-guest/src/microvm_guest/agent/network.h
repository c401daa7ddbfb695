/* The guest's network interfaces: an address, a way out and name servers, by DHCP.
 *
 * A process of its own asks for them while the guest goes on booting, so that nobody who needs no
 * network waits for one. A command does wait, for a moment: what is started right after boot finds
 * the network there. */

#ifndef MICROVM_NETWORK_H
#define MICROVM_NETWORK_H

#include <stdbool.h>

/* As process 1, when "/" is what it will be: begin, for the interfaces that the kernel's word
 * `microvm.dhcp=eth0,eth1` names; without it do nothing. With `microvm.dns=0` the name servers that
 * come along are not taken. */
void network_begin(void);

/* Whether interfaces still wait for their addresses, and whoever needs them should. */
bool network_pending(void);

/* In a child: wait until they have them, or have had time enough. */
void network_wait(void);

#endif
