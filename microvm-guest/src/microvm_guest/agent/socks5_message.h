/* SOCKS5's messages (RFC 1928), without IO: what a client says, and what it is told. */

#ifndef MICROVM_SOCKS5_MESSAGE_H
#define MICROVM_SOCKS5_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define SOCKS5_VERSION 5
#define SOCKS5_MAX_MESSAGE 262 /* a request with the longest name */
#define SOCKS5_MAX_REPLY 22    /* with an IPv6 address */

enum socks5_reply { /* RFC 1928, 6 */
    SOCKS5_SUCCEEDED = 0,
    SOCKS5_GENERAL_FAILURE = 1,
    SOCKS5_NOT_ALLOWED = 2,
    SOCKS5_NETWORK_UNREACHABLE = 3,
    SOCKS5_HOST_UNREACHABLE = 4,
    SOCKS5_CONNECTION_REFUSED = 5,
    SOCKS5_COMMAND_NOT_SUPPORTED = 7,
    SOCKS5_ADDRESS_TYPE_NOT_SUPPORTED = 8,
};

struct socks5_request {
    uint16_t port;
    char name[256];                  /* empty: there is an address */
    struct sockaddr_storage address; /* with the port */
};

/* How many bytes a greeting, or a request, that begins so surely has. */
size_t socks5_greeting_length(const uint8_t *message, size_t length);
size_t socks5_request_length(const uint8_t *message, size_t length);

/* Whether a whole greeting offers no authentication, which is all that we do; and the answer to it. */
bool socks5_accepts(const uint8_t *message, uint8_t answer[2]);

/* What is wrong with the beginning of a request, or SOCKS5_SUCCEEDED for nothing yet. */
enum socks5_reply socks5_check(const uint8_t *message, size_t length);

/* Read a whole request that nothing was wrong with. SOCKS5_SUCCEEDED, or what it is answered. */
enum socks5_reply socks5_read(const uint8_t *message, struct socks5_request *request);

/* What a client is told of an errno. */
enum socks5_reply socks5_reply_for(int error);

/* Write a reply; `bound` is our own address of the connection, or NULL. Returns its length. */
size_t socks5_write_reply(uint8_t raw[SOCKS5_MAX_REPLY], enum socks5_reply reply,
                          const struct sockaddr_storage *bound);

#endif
