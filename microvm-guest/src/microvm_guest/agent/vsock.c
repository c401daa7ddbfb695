#include "vsock.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

/* vsock(7). Declared here, since musl-gcc does not see the kernel's <linux/vm_sockets.h>. */
#ifndef AF_VSOCK
#define AF_VSOCK 40
#endif
#define VMADDR_CID_ANY 0xffffffffu
#define VMADDR_CID_HOST 2
#define SO_VM_SOCKETS_CONNECT_TIMEOUT 6

struct sockaddr_vm {
    unsigned short svm_family;
    unsigned short svm_reserved1;
    unsigned int svm_port;
    unsigned int svm_cid;
    unsigned char svm_zero[sizeof(struct sockaddr) - sizeof(unsigned short) * 2 -
                           sizeof(unsigned int) * 2];
};

/* The kernel gives a connect() two seconds (VSOCK_DEFAULT_CONNECT_TIMEOUT); a busy host that
 * emulates us may need more, and waiting costs nothing. */
static const struct timeval patience = {.tv_sec = 60};

static int open_socket(void)
{
    return socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

static int closing(int fd)
{
    int saved = errno;
    if (fd >= 0)
        close(fd);
    errno = saved;
    return -1;
}

int vsock_listen(uint32_t port, int backlog)
{
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_port = port, .svm_cid = VMADDR_CID_ANY};
    int fd = open_socket();
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(fd, backlog) != 0)
        return closing(fd);
    return fd;
}

int vsock_dial(uint32_t port)
{
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_port = port, .svm_cid = VMADDR_CID_HOST};
    int fd = open_socket();
    if (fd < 0)
        return -1;
    setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS)
        return closing(fd);
    return fd;
}

bool vsock_dialled(int fd)
{
    int error = 0;
    socklen_t length = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0;
}

bool vsock_peer_is_host(int fd)
{
    struct sockaddr_vm address = {0};
    socklen_t length = sizeof address;
    return getpeername(fd, (struct sockaddr *)&address, &length) == 0 &&
           address.svm_family == AF_VSOCK && address.svm_cid == VMADDR_CID_HOST;
}
