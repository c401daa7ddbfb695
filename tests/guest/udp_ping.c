/* For the guest: send datagrams to ADDRESS PORT, each as soon as the last one has come back.
 *
 *   udp_ping ADDRESS PORT COUNT BYTES
 *
 * Prints how many came back as they went. One that does not within a second is sent again, five
 * times. */

#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

int main(int argc, char **argv)
{
    static uint8_t sent[65536], received[65536];
    struct timeval second = {.tv_sec = 1};
    struct sockaddr_in peer = {.sin_family = AF_INET};
    int good = 0;
    if (argc != 5 || inet_pton(AF_INET, argv[1], &peer.sin_addr) != 1)
        return 2;
    peer.sin_port = htons((uint16_t)atoi(argv[2]));
    int count = atoi(argv[3]);
    size_t length = (size_t)atoi(argv[4]);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    if (length > sizeof sent || connect(fd, (struct sockaddr *)&peer, sizeof peer) != 0)
        return 1;
    for (int i = 0; i < count; i++) {
        for (size_t k = 0; k < length; k++)
            sent[k] = (uint8_t)(i + (int)k * 7);
        for (int try = 0; try < 5; try++) {
            send(fd, sent, length, 0);
            if (recv(fd, received, sizeof received, 0) != (ssize_t)length)
                continue;
            good += memcmp(sent, received, length) == 0;
            break;
        }
    }
    printf("%d\n", good);
    return 0;
}
