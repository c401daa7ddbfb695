/* A SOCKS5 client for datagrams: socks5_udp PROXY-PORT ADDRESS PORT TEXT
 *
 * Associates at the proxy on the loopback (RFC 1928, 7), sends TEXT, prints the answer. */

#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sockaddr_in address_of(const char *host, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    inet_pton(AF_INET, host, &address.sin_addr);
    return address;
}

static void take(int fd, uint8_t *to, size_t length)
{
    if (recv(fd, to, length, MSG_WAITALL) != (ssize_t)length)
        exit(3);
}

int main(int argc, char **argv)
{
    static const uint8_t greeting[] = {5, 1, 0};
    static const uint8_t associate[] = {5, 3, 0, 1, 0, 0, 0, 0, 0, 0};
    uint8_t raw[2048] = {0, 0, 0, 1};
    if (argc != 5)
        return 2;
    struct sockaddr_in proxy = address_of("127.0.0.1", argv[1]);
    struct sockaddr_in target = address_of(argv[2], argv[3]);
    int control = socket(AF_INET, SOCK_STREAM, 0), datagrams = socket(AF_INET, SOCK_DGRAM, 0);
    if (connect(control, (struct sockaddr *)&proxy, sizeof proxy) != 0)
        return 4;
    send(control, greeting, sizeof greeting, 0);
    take(control, raw + 16, 2);
    send(control, associate, sizeof associate, 0);
    take(control, raw + 16, 10);
    if (raw[17] != 0) {
        printf("refused %u\n", raw[17]);
        return 1;
    }
    memcpy(&proxy.sin_addr, raw + 20, 4);
    memcpy(&proxy.sin_port, raw + 24, 2);
    memcpy(raw + 4, &target.sin_addr, 4);
    memcpy(raw + 8, &target.sin_port, 2);
    size_t length = strlen(argv[4]);
    memcpy(raw + 10, argv[4], length);
    sendto(datagrams, raw, 10 + length, 0, (struct sockaddr *)&proxy, sizeof proxy);
    alarm(20);
    ssize_t got = recv(datagrams, raw, sizeof raw, 0);
    if (got < 10 || memcmp(raw + 4, &target.sin_addr, 4) != 0)
        return 5;
    printf("%.*s\n", (int)got - 10, raw + 10);
    return 0;
}
