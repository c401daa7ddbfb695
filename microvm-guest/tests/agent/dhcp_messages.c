/* For test_native_agent_dhcp.py: dhcp.c on packets from standard input.
 *
 *   dhcp_messages read XID      each packet behind its length (be16): the type and the lease, a line
 *   dhcp_messages write XID KIND    a discover, request or renewal, as bytes; of address 10.0.0.2,
 *                                   offered by 10.0.0.1 */

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dhcp.h"

static const uint8_t mac[DHCP_MAC_BYTES] = {2, 0, 0, 0, 0, 1};

static const char *text(uint32_t address)
{
    static char texts[8][INET_ADDRSTRLEN];
    static unsigned next;
    char *at = texts[next++ % 8];
    return inet_ntop(AF_INET, &address, at, INET_ADDRSTRLEN);
}

static void read_all(uint32_t xid)
{
    uint8_t head[2];
    while (fread(head, 1, 2, stdin) == 2) {
        size_t length = (size_t)(head[0] << 8 | head[1]);
        /* of exactly this size, so that one byte too far is seen */
        uint8_t *packet = malloc(length > 0 ? length : 1);
        struct dhcp_lease lease = {0};
        if (fread(packet, 1, length, stdin) != length)
            exit(1);
        int type = dhcp_read(packet, length, xid, mac, &lease);
        printf("%d %s %s %s %s %u %s %s %s\n", type, text(lease.address), text(lease.netmask),
               text(lease.router), text(lease.server), lease.seconds, text(lease.dns[0]),
               text(lease.dns[1]), text(lease.dns[2]));
        free(packet);
    }
}

static void write_one(uint32_t xid, const char *kind)
{
    uint8_t packet[DHCP_PACKET_BYTES];
    struct dhcp_lease lease = {.address = htonl(0x0a000002), .server = htonl(0x0a000001)};
    const struct dhcp_lease *wanted = strcmp(kind, "discover") == 0 ? NULL : &lease;
    size_t length = dhcp_write(packet, xid, mac, wanted, strcmp(kind, "renewal") == 0);
    fwrite(packet, 1, length, stdout);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    uint32_t xid = (uint32_t)strtoul(argv[2], NULL, 10);
    if (strcmp(argv[1], "read") == 0)
        read_all(xid);
    else
        write_one(xid, argv[3]);
    return 0;
}
