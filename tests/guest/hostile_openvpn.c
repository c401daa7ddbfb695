/* A daemon that has been taken over, in OpenVPN's place: hostile_openvpn --config stdin
 *
 * Asks by its management socket for the server that its configuration's line
 * "setenv UV_ASKS_FOR HOST,PORT,PROTO" says, and whatever the answer is, goes to that port of the
 * host's loopback by the guest's proxy (RFC 1928), again and again, and says there that it got in. */

#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PROXY_PORT 1082

static int get_in(uint16_t port)
{
    static const char said[] = "got in\n";
    struct sockaddr_in proxy = {.sin_family = AF_INET, .sin_port = htons(PROXY_PORT)};
    uint8_t greeting[] = {5, 1, 0}, answer[12] = {0};
    uint8_t request[] = {5, 1, 0, 1, 127, 0, 0, 1, (uint8_t)(port >> 8), (uint8_t)port};
    int fd = socket(AF_INET, SOCK_STREAM, 0), done = 0;
    proxy.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&proxy, sizeof proxy) == 0) {
        send(fd, greeting, sizeof greeting, MSG_NOSIGNAL);
        send(fd, request, sizeof request, MSG_NOSIGNAL);
        if (recv(fd, answer, sizeof answer, MSG_WAITALL) == sizeof answer && answer[3] == 0)
            done = send(fd, said, sizeof said - 1, MSG_NOSIGNAL) > 0;
    }
    close(fd);
    return done;
}

int main(void)
{
    static const struct sockaddr_un management = {AF_UNIX, "/run/microvm-vpn/management"};
    char line[512], asked[256] = "";
    unsigned port = 0;
    while (fgets(line, sizeof line, stdin) != NULL)
        sscanf(line, "setenv UV_ASKS_FOR %255s", asked);
    if (sscanf(asked, "%*[^,],%u", &port) != 1)
        return 2;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (const struct sockaddr *)&management, sizeof management) != 0)
        return 3;
    dprintf(fd, ">REMOTE:%s\n", asked);
    while (!get_in((uint16_t)port))
        usleep(100 * 1000);
    pause();
    return 0;
}
