/* DHCP messages (RFC 2131, RFC 2132), and the IPv4 and UDP around them. Pure: no sockets.
 *
 * They come from the network, which is not trusted: every length is checked before it is used, and
 * what does not fit is no message for us. */

#ifndef MICROVM_DHCP_H
#define MICROVM_DHCP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DHCP_MAC_BYTES 6
#define DHCP_MAX_DNS 3 /* as resolv.conf(5) */
#define DHCP_PACKET_BYTES 1500
#define DHCP_FOREVER 0xffffffffu

enum dhcp_type { DHCP_DISCOVER = 1, DHCP_OFFER = 2, DHCP_REQUEST = 3, DHCP_ACK = 5, DHCP_NAK = 6 };

/* Addresses are as they are sent, the first byte first in memory; 0 is none. */
struct dhcp_lease {
    uint32_t address, netmask, router, server;
    uint32_t dns[DHCP_MAX_DNS];
    uint32_t seconds;
};

/* A DISCOVER, or with a lease a REQUEST for it (`renewing`: one that we have), as an IP packet to
 * everybody. Returns its length; `packet` holds DHCP_PACKET_BYTES. */
size_t dhcp_write(uint8_t *packet, uint32_t xid, const uint8_t mac[DHCP_MAC_BYTES],
                  const struct dhcp_lease *wanted, bool renewing);

/* The type of an IP packet that answers `xid`, and what it gives; 0 if it is anything else. */
enum dhcp_type dhcp_read(const uint8_t *packet, size_t length, uint32_t xid,
                         const uint8_t mac[DHCP_MAC_BYTES], struct dhcp_lease *lease);

#endif
