#include "dhcp.h"

#include <arpa/inet.h>
#include <string.h>

/* IPv4 (RFC 791, 3.1) without options, UDP (RFC 768), the fixed part and the magic cookie. */
#define IP_BYTES 20
#define UDP_BYTES 8
#define FIXED_BYTES 240
#define BROADCAST_FLAG 0x80

enum port { PORT_SERVER = 67, PORT_CLIENT = 68 };

enum option {
    OPTION_PAD = 0,
    OPTION_NETMASK = 1,
    OPTION_ROUTER = 3,
    OPTION_DNS = 6,
    OPTION_ADDRESS = 50,
    OPTION_SECONDS = 51,
    OPTION_TYPE = 53,
    OPTION_SERVER = 54,
    OPTION_WANTED = 55,
    OPTION_END = 255,
};

static const uint8_t cookie[4] = {99, 130, 83, 99};
static const uint8_t wanted_options[] = {OPTION_NETMASK, OPTION_ROUTER, OPTION_DNS};

/* Where fields are in the fixed part (RFC 2131, 2, figure 1). */
enum { AT_OP = 0, AT_HTYPE = 1, AT_HLEN = 2, AT_XID = 4, AT_FLAGS = 10, AT_CIADDR = 12,
       AT_YIADDR = 16, AT_CHADDR = 28, AT_COOKIE = 236 };

static uint16_t read_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static void write_u16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint16_t checksum(const uint8_t *data, size_t length)
{
    uint32_t sum = 0;
    for (size_t i = 0; i + 1 < length; i += 2)
        sum += read_u16(data + i);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static uint8_t *add_option(uint8_t *at, uint8_t code, const void *value, uint8_t length)
{
    *at++ = code;
    *at++ = length;
    memcpy(at, value, length);
    return at + length;
}

size_t dhcp_write(uint8_t *packet, uint32_t xid, const uint8_t mac[DHCP_MAC_BYTES],
                  const struct dhcp_lease *wanted, bool renewing)
{
    uint8_t *udp = packet + IP_BYTES, *message = udp + UDP_BYTES;
    uint8_t *at = message + FIXED_BYTES;
    uint8_t type = wanted != NULL ? DHCP_REQUEST : DHCP_DISCOVER;
    memset(packet, 0, IP_BYTES + UDP_BYTES + FIXED_BYTES);
    message[AT_OP] = 1;
    message[AT_HTYPE] = 1;
    message[AT_HLEN] = DHCP_MAC_BYTES;
    memcpy(message + AT_XID, &xid, sizeof xid);
    message[AT_FLAGS] = BROADCAST_FLAG;
    memcpy(message + AT_CHADDR, mac, DHCP_MAC_BYTES);
    memcpy(message + AT_COOKIE, cookie, sizeof cookie);
    at = add_option(at, OPTION_TYPE, &type, 1);
    /* RFC 2131, 4.3.2: an address that is had stands in ciaddr, one that was offered in an option,
     * with the server whose offer it was */
    if (renewing) {
        memcpy(message + AT_CIADDR, &wanted->address, 4);
    } else if (wanted != NULL) {
        at = add_option(at, OPTION_ADDRESS, &wanted->address, 4);
        at = add_option(at, OPTION_SERVER, &wanted->server, 4);
    }
    at = add_option(at, OPTION_WANTED, wanted_options, sizeof wanted_options);
    *at++ = OPTION_END;
    while (at < message + 300) /* BOOTP's length, below which some servers do not listen */
        *at++ = OPTION_PAD;

    size_t length = (size_t)(at - packet);
    write_u16(udp, PORT_CLIENT);
    write_u16(udp + 2, PORT_SERVER);
    write_u16(udp + 4, (unsigned)(length - IP_BYTES)); /* a checksum of 0 is none */
    packet[0] = 0x45;
    write_u16(packet + 2, (unsigned)length);
    packet[8] = 64;
    packet[9] = IPPROTO_UDP;
    if (renewing)
        memcpy(packet + 12, &wanted->address, 4);
    memset(packet + 16, 0xff, 4);
    write_u16(packet + 10, checksum(packet, IP_BYTES));
    return length;
}

/* The message in an IP packet from a server's port to a client's, and its length; NULL if none. */
static const uint8_t *find_message(const uint8_t *packet, size_t length, size_t *message_length)
{
    if (length < IP_BYTES || packet[0] >> 4 != 4 || packet[9] != IPPROTO_UDP)
        return NULL;
    size_t header = (size_t)(packet[0] & 15) * 4, whole = read_u16(packet + 2);
    bool fragment = (read_u16(packet + 6) & 0x3fff) != 0;
    if (header < IP_BYTES || whole > length || whole < header + UDP_BYTES || fragment)
        return NULL;
    const uint8_t *udp = packet + header;
    size_t udp_length = read_u16(udp + 4);
    if (read_u16(udp) != PORT_SERVER || read_u16(udp + 2) != PORT_CLIENT ||
        udp_length > whole - header || udp_length < UDP_BYTES + FIXED_BYTES)
        return NULL;
    *message_length = udp_length - UDP_BYTES;
    return udp + UDP_BYTES;
}

static void take_option(struct dhcp_lease *lease, enum dhcp_type *type, uint8_t code,
                        const uint8_t *value, size_t length)
{
    if (code == OPTION_TYPE && length == 1)
        *type = value[0];
    else if (code == OPTION_NETMASK && length == 4)
        memcpy(&lease->netmask, value, 4);
    else if (code == OPTION_ROUTER && length >= 4)
        memcpy(&lease->router, value, 4);
    else if (code == OPTION_SERVER && length == 4)
        memcpy(&lease->server, value, 4);
    else if (code == OPTION_SECONDS && length == 4)
        lease->seconds = (uint32_t)read_u16(value) << 16 | read_u16(value + 2);
    else if (code == OPTION_DNS)
        for (size_t i = 0; i < DHCP_MAX_DNS && 4 * i + 4 <= length; i++)
            memcpy(&lease->dns[i], value + 4 * i, 4);
}

enum dhcp_type dhcp_read(const uint8_t *packet, size_t length, uint32_t xid,
                         const uint8_t mac[DHCP_MAC_BYTES], struct dhcp_lease *lease)
{
    enum dhcp_type type = 0;
    size_t left;
    const uint8_t *message = find_message(packet, length, &left);
    if (message == NULL || message[AT_OP] != 2 || memcmp(message + AT_XID, &xid, sizeof xid) != 0 ||
        memcmp(message + AT_CHADDR, mac, DHCP_MAC_BYTES) != 0 ||
        memcmp(message + AT_COOKIE, cookie, sizeof cookie) != 0)
        return 0;
    *lease = (struct dhcp_lease){.seconds = DHCP_FOREVER};
    memcpy(&lease->address, message + AT_YIADDR, 4);
    const uint8_t *at = message + FIXED_BYTES, *end = message + left;
    while (at < end && *at != OPTION_END) {
        if (*at == OPTION_PAD) {
            at++;
            continue;
        }
        if (end - at < 2 || end - at - 2 < at[1])
            return 0;
        take_option(lease, &type, at[0], at + 2, at[1]);
        at += 2 + at[1];
    }
    if (type == DHCP_NAK)
        return type;
    bool whole = (type == DHCP_OFFER || type == DHCP_ACK) && lease->address != 0;
    return whole ? type : 0;
}
