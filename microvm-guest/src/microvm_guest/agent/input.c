#include "input.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <termios.h>
#include <unistd.h>

#include "bytes.h"
#include "connection.h"

#define EOF_CHARACTERS 2
#define BUFFER_BYTES (WIRE_STDIN_WINDOW + EOF_CHARACTERS)
#define GRANT_BYTES (WIRE_STDIN_WINDOW / 2) /* tell the host in big steps */

static void send_window(struct input *input, uint8_t flags)
{
    uint8_t payload[8];
    put_u32(payload, CHANNEL_STDIN);
    put_u32(payload + 4, input->owed);
    connection_send(input->connection, FRAME_WINDOW, flags, input->stream, payload, sizeof payload);
    input->window += input->owed;
    input->owed = 0;
}

static size_t waiting(const struct input *input)
{
    return input->tail - input->head;
}

void input_close(struct input *input)
{
    watch_close(&input->watch);
    free(input->buffer);
    input->buffer = NULL;
    input->head = input->tail = 0;
}

/* Write what the command takes now; how much that was. A command that has closed its stdin takes
 * nothing ever again, and the host is told. */
static size_t offer(struct input *input, const uint8_t *data, size_t length)
{
    ssize_t written = length == 0 ? 0 : write(input->watch.fd, data, length);
    if (written < 0 && errno != EAGAIN && errno != EINTR) {
        input_close(input);
        input->owed = 0;
        send_window(input, FLAG_CLOSED);
        return 0;
    }
    return written < 0 ? 0 : (size_t)written;
}

static bool keep(struct input *input, const uint8_t *data, size_t length)
{
    if (length == 0)
        return true;
    if (input->buffer == NULL)
        input->buffer = malloc(BUFFER_BYTES);
    if (input->buffer == NULL)
        return false;
    if (BUFFER_BYTES - input->tail < length) {
        memmove(input->buffer, input->buffer + input->head, waiting(input));
        input->tail -= input->head;
        input->head = 0;
    }
    memcpy(input->buffer + input->tail, data, length);
    input->tail += length;
    return true;
}

/* A terminal has no end of file, only a character that its line discipline reads as one: at the
 * start of a line once, within a line once more to end the line. */
static void type_eof(struct input *input)
{
    struct termios mode;
    if (tcgetattr(input->watch.fd, &mode) != 0 || !(mode.c_lflag & ICANON))
        return;
    uint8_t characters[EOF_CHARACTERS] = {mode.c_cc[VEOF], mode.c_cc[VEOF]};
    bool within_line = input->last_byte != 0 && input->last_byte != '\n' && input->last_byte != '\r';
    keep(input, characters, within_line ? 2 : 1);
}

static void settle(struct input *input)
{
    if (input->watch.fd < 0)
        return;
    if (waiting(input) == 0)
        input->head = input->tail = 0;
    if (waiting(input) == 0 && input->eof && !input->tty)
        input_close(input);
    else if (!watch_for(&input->watch, input->started && waiting(input) > 0 ? EPOLLOUT : 0))
        input->connection->broken = true; /* no memory for the watch */
    else
        input_rearm(input);
}

void input_rearm(struct input *input)
{
    if (input->watch.fd >= 0 && input->owed >= GRANT_BYTES && !input->eof &&
        !input->connection->full)
        send_window(input, 0);
}

static void ready(struct watch *watch, uint32_t events)
{
    struct input *input = (struct input *)watch;
    (void)events;
    size_t taken = offer(input, input->buffer + input->head, waiting(input));
    input->head += taken;
    input->owed += (uint32_t)taken;
    settle(input);
}

void input_open(struct input *input, int fd, bool tty, struct connection *connection,
                uint32_t stream)
{
    input->connection = connection;
    input->stream = stream;
    input->tty = tty;
    input->window = WIRE_STDIN_WINDOW;
    watch_open(&input->watch, fd, ready);
}

void input_start(struct input *input)
{
    input->started = true;
    settle(input);
}

const char *input_put(struct input *input, const uint8_t *data, size_t length, bool eof)
{
    if (length > input->window)
        return "More stdin has come than its window allows.";
    if (input->eof)
        return "More stdin has come after its end.";
    input->window -= (uint32_t)length;
    input->eof = eof;
    if (length > 0)
        input->last_byte = data[length - 1];
    if (input->watch.fd < 0)
        return NULL; /* the command has closed it, or never had one: it goes nowhere */
    size_t taken = input->started && waiting(input) == 0 ? offer(input, data, length) : 0;
    if (input->watch.fd < 0)
        return NULL;
    input->owed += (uint32_t)taken;
    if (!keep(input, data + taken, length - taken)) {
        input->connection->broken = true;
        return NULL;
    }
    if (eof && input->tty)
        type_eof(input);
    settle(input);
    return NULL;
}
