#include "address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "wire.h"

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un local;
};

static bool parse(uint8_t family, const char *text, uint16_t port, union address *address,
                  socklen_t *length)
{
    memset(address, 0, sizeof *address);
    if (family == FORWARD_UNIX) {
        size_t bytes = strlen(text);
        if (bytes == 0 || bytes >= sizeof address->local.sun_path)
            return false;
        address->local.sun_family = AF_UNIX;
        memcpy(address->local.sun_path, text, bytes + 1);
        *length = sizeof address->local;
        return true;
    }
    if (inet_pton(AF_INET, text, &address->v4.sin_addr) == 1) {
        address->v4.sin_family = AF_INET;
        address->v4.sin_port = htons(port);
        *length = sizeof address->v4;
        return true;
    }
    if (inet_pton(AF_INET6, text, &address->v6.sin6_addr) == 1) {
        address->v6.sin6_family = AF_INET6;
        address->v6.sin6_port = htons(port);
        *length = sizeof address->v6;
        return true;
    }
    return false;
}

static int closing(int fd)
{
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

static int open_socket(uint8_t family, int type, const char *text, uint16_t port,
                       union address *address, socklen_t *length)
{
    if (!parse(family, text, port, address, length)) {
        errno = EINVAL;
        return -1;
    }
    return socket(address->any.sa_family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

int address_connect(uint8_t family, const char *text, uint16_t port)
{
    union address address;
    socklen_t length;
    int fd = open_socket(family, SOCK_STREAM, text, port, &address, &length);
    if (fd >= 0 && connect(fd, &address.any, length) != 0 && errno != EINPROGRESS)
        return closing(fd);
    return fd;
}

int address_listen(uint8_t family, const char *text, uint16_t *port)
{
    static const int on = 1;
    union address address;
    socklen_t length;
    int fd = open_socket(family, SOCK_STREAM, text, *port, &address, &length);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, &address.any, length) != 0 || listen(fd, WIRE_MAX_FORWARDS) != 0 ||
        getsockname(fd, &address.any, &length) != 0)
        return closing(fd);
    if (family == FORWARD_UNIX)
        chmod(text, 0666); /* a port of the loopback is for every user of the guest, too */
    else /* the port is at the same place in both kinds of address */
        *port = ntohs(address.v4.sin_port);
    return fd;
}

int address_bind(const char *text, uint16_t *port)
{
    union address address;
    socklen_t length;
    int fd = open_socket(FORWARD_TCP, SOCK_DGRAM, text, *port, &address, &length);
    if (fd < 0)
        return -1;
    if (bind(fd, &address.any, length) != 0 || getsockname(fd, &address.any, &length) != 0)
        return closing(fd);
    *port = ntohs(address.v4.sin_port);
    return fd;
}
