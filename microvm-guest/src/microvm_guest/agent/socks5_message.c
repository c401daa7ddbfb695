#include "socks5_message.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#define NO_AUTHENTICATION 0
#define NO_ACCEPTABLE_METHOD 0xff
#define COMMAND_CONNECT 1
#define HEAD 4 /* version, command, zero, address type */

enum address_type { IPV4 = 1, NAME = 3, IPV6 = 4 };

size_t socks5_greeting_length(const uint8_t *message, size_t length)
{
    return length < 2 ? 2 : 2u + message[1];
}

bool socks5_accepts(const uint8_t *message, uint8_t answer[2])
{
    bool offered = memchr(message + 2, NO_AUTHENTICATION, message[1]) != NULL;
    answer[0] = SOCKS5_VERSION;
    answer[1] = offered ? NO_AUTHENTICATION : NO_ACCEPTABLE_METHOD;
    return offered;
}

size_t socks5_request_length(const uint8_t *message, size_t length)
{
    if (length < HEAD)
        return HEAD;
    if (message[3] == NAME)
        return length == HEAD ? HEAD + 1 : HEAD + 1u + message[4] + 2;
    return HEAD + (message[3] == IPV6 ? 16 : 4) + 2;
}

enum socks5_reply socks5_check(const uint8_t *message, size_t length)
{
    if (length > 0 && message[0] != SOCKS5_VERSION)
        return SOCKS5_GENERAL_FAILURE;
    if (length < HEAD)
        return SOCKS5_SUCCEEDED;
    if (message[3] != IPV4 && message[3] != NAME && message[3] != IPV6)
        return SOCKS5_ADDRESS_TYPE_NOT_SUPPORTED;
    if (message[3] == NAME && length > HEAD && message[4] == 0)
        return SOCKS5_HOST_UNREACHABLE;
    return SOCKS5_SUCCEEDED;
}

static bool read_name(const uint8_t *name, size_t length, char *text)
{
    for (size_t i = 0; i < length; i++)
        if (name[i] < 0x21 || name[i] > 0x7e)
            return false;
    memcpy(text, name, length);
    text[length] = 0;
    return true;
}

enum socks5_reply socks5_read(const uint8_t *message, struct socks5_request *request)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)&request->address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&request->address;
    const uint8_t *at = message + HEAD;
    const uint8_t *port = message + socks5_request_length(message, HEAD + 1) - 2;
    memset(request, 0, sizeof *request);
    request->port = (uint16_t)(port[0] << 8 | port[1]);
    if (message[3] == NAME && !read_name(at + 1, at[0], request->name))
        return SOCKS5_HOST_UNREACHABLE;
    if (message[1] != COMMAND_CONNECT)
        return SOCKS5_COMMAND_NOT_SUPPORTED;
    if (request->port == 0)
        return SOCKS5_CONNECTION_REFUSED; /* nobody has it */
    if (message[3] == IPV4) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(request->port);
        memcpy(&v4->sin_addr, at, 4);
    } else if (message[3] == IPV6) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(request->port);
        memcpy(&v6->sin6_addr, at, 16);
    }
    return SOCKS5_SUCCEEDED;
}

enum socks5_reply socks5_reply_for(int error)
{
    switch (error) {
    case ECONNREFUSED:
    case ECONNRESET:
        return SOCKS5_CONNECTION_REFUSED;
    case ENETUNREACH:
    case ENETDOWN:
    case EAFNOSUPPORT:
    case EADDRNOTAVAIL: /* of IPv6 that is switched off */
        return SOCKS5_NETWORK_UNREACHABLE;
    case EHOSTUNREACH:
    case EHOSTDOWN:
    case ETIMEDOUT:
        return SOCKS5_HOST_UNREACHABLE;
    case EACCES: /* a route that prohibits, a firewall that rejects */
    case EPERM:
        return SOCKS5_NOT_ALLOWED;
    default:
        return SOCKS5_GENERAL_FAILURE;
    }
}

size_t socks5_write_reply(uint8_t raw[SOCKS5_MAX_REPLY], enum socks5_reply reply,
                          const struct sockaddr_storage *bound)
{
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)bound;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)bound;
    memset(raw, 0, SOCKS5_MAX_REPLY);
    raw[0] = SOCKS5_VERSION;
    raw[1] = (uint8_t)reply;
    if (bound != NULL && bound->ss_family == AF_INET6) {
        raw[3] = IPV6;
        memcpy(raw + HEAD, &v6->sin6_addr, 16);
        memcpy(raw + HEAD + 16, &v6->sin6_port, 2);
        return HEAD + 16 + 2;
    }
    raw[3] = IPV4;
    if (bound != NULL && bound->ss_family == AF_INET) {
        memcpy(raw + HEAD, &v4->sin_addr, 4);
        memcpy(raw + HEAD + 4, &v4->sin_port, 2);
    }
    return HEAD + 4 + 2;
}
