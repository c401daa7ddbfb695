/* The guest's end of a TCP stream or of pings, with the microseconds that it took.
 *
 *   net_load send|receive HOST PORT BYTES    PORT takes all and answers one byte, or gives BYTES
 *   net_load ping HOST COUNT                 one ICMP echo after the other, 64 bytes each
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 17];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static void stream(struct sockaddr_in *host, int sends, int64_t left)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)host, sizeof *host))
        fail("connect");
    while (left) {
        size_t size = left < (int64_t)sizeof buffer ? (size_t)left : sizeof buffer;
        ssize_t done = sends ? write(fd, buffer, size) : read(fd, buffer, size);
        if (done <= 0)
            fail("transfer");
        left -= done;
    }
    if (sends && (shutdown(fd, SHUT_WR) || read(fd, buffer, 1) != 1))
        fail("the answer");
}

static uint16_t checksum(const uint16_t *words, size_t count)
{
    uint32_t sum = 0;
    while (count--)
        sum += *words++;
    sum = (sum >> 16) + (sum & 0xffff);
    return (uint16_t)~(sum + (sum >> 16));
}

static void ping(struct sockaddr_in *host, int count)
{
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
    if (fd < 0 || connect(fd, (struct sockaddr *)host, sizeof *host))
        fail("socket");
    for (int n = 0; n < count; n++) {
        union {
            struct icmphdr head;
            uint16_t words[32];
        } echo = {.head = {.type = ICMP_ECHO}};
        echo.head.un.echo.sequence = htons((uint16_t)n);
        echo.head.checksum = checksum(echo.words, 32);
        if (send(fd, &echo, sizeof echo, 0) != sizeof echo)
            fail("send");
        struct icmphdr *answer;
        do {
            if (recv(fd, buffer, sizeof buffer, 0) <= 0)
                fail("recv");
            answer = (struct icmphdr *)(buffer + (buffer[0] & 15) * 4);
        } while (answer->type != ICMP_ECHOREPLY ||
                 answer->un.echo.sequence != htons((uint16_t)n));
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in host = {.sin_family = AF_INET};
    if (argc < 4 || inet_pton(AF_INET, argv[2], &host.sin_addr) != 1)
        return 2;
    int64_t start = now_us();
    if (argc == 4) {
        ping(&host, atoi(argv[3]));
    } else {
        host.sin_port = htons((uint16_t)atoi(argv[3]));
        stream(&host, argv[1][0] == 's', atoll(argv[4]));
    }
    printf("%lld\n", (long long)(now_us() - start));
    return 0;
}
