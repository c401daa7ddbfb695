/* For the guest: use so many of a network card's pairs of queues, as `ethtool -L` does.
 *
 *   net_channels INTERFACE COUNT
 */

#include <errno.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define SIOCETHTOOL 0x8946
#define ETHTOOL_GCHANNELS 0x3c
#define ETHTOOL_SCHANNELS 0x3d

/* struct ethtool_channels of <linux/ethtool.h> */
struct channels {
    uint32_t cmd;
    uint32_t max_rx, max_tx, max_other, max_combined;
    uint32_t rx, tx, other, combined;
};

int main(int argc, char **argv)
{
    struct channels channels = {.cmd = ETHTOOL_GCHANNELS};
    struct ifreq request = {.ifr_data = (void *)&channels};
    if (argc != 3 || strlen(argv[1]) >= sizeof request.ifr_name)
        return 2;
    memcpy(request.ifr_name, argv[1], strlen(argv[1]));
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (ioctl(fd, SIOCETHTOOL, &request) != 0)
        goto failed;
    channels.cmd = ETHTOOL_SCHANNELS;
    channels.combined = (uint32_t)atoi(argv[2]);
    if (ioctl(fd, SIOCETHTOOL, &request) == 0)
        return 0;
failed:
    fprintf(stderr, "net_channels: %s\n", strerror(errno));
    return 1;
}
