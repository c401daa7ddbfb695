/* Sockets of the guest by the address that a host names: numeric IP and port, or a path. */

#ifndef MICROVM_ADDRESS_H
#define MICROVM_ADDRESS_H

#include <stdint.h>

/* A non-blocking socket whose connect() is under way or done; -1 with errno.
 * `family` is an enum forward_family, `text` ends with NUL. */
int address_connect(uint8_t family, const char *text, uint16_t port);

/* A socket that listens there; -1 with errno. `port` 0 is replaced by the one that was chosen. */
int address_listen(uint8_t family, const char *text, uint16_t *port);

/* A UDP socket bound there, for numeric addresses; as address_listen(). */
int address_bind(const char *text, uint16_t *port);

#endif
