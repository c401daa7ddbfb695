#include "notice.h"

#include <stddef.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "connection.h"
#include "wire.h"

static pid_t syncing; /* 0: nobody */
static uint64_t waiting[WIRE_MAX_CONNECTIONS]; /* whom to tell of its end; 0: nobody */
static uint32_t pauses;

static void answer(struct connection *connection, uint32_t notice)
{
    uint8_t payload[4];
    put_u32(payload, notice);
    connection_send(connection, FRAME_NOTICE, 0, 0, payload, sizeof payload);
}

static const char *prepare_pause(struct connection *connection)
{
    size_t free_at = 0;
    for (size_t i = 0; i < WIRE_MAX_CONNECTIONS; i++) {
        if (waiting[i] == connection->opened)
            return "A pause is told of while another one has no answer yet.";
        if (connection_find(waiting[i]) == NULL)
            free_at = i;
    }
    pauses++;
    if (syncing == 0) {
        syncing = fork();
        if (syncing == 0) {
            sync();
            _exit(0);
        }
    }
    if (syncing < 0) { /* no memory for a child: then the disks have to wait */
        syncing = 0;
        answer(connection, NOTICE_PAUSING);
        return NULL;
    }
    waiting[free_at] = connection->opened;
    return NULL;
}

bool notice_reaped(pid_t pid)
{
    if (syncing == 0 || pid != syncing)
        return false;
    syncing = 0;
    for (size_t i = 0; i < WIRE_MAX_CONNECTIONS; i++) {
        struct connection *connection = connection_find(waiting[i]);
        if (connection != NULL)
            answer(connection, NOTICE_PAUSING);
        waiting[i] = 0;
    }
    return true;
}

const char *notice_serve(struct connection *connection, uint32_t notice, uint64_t wall_ns)
{
    switch (notice) {
    case NOTICE_PAUSING:
        return prepare_pause(connection);
    case NOTICE_RESUMED:
        clock_catch_up(wall_ns);
        answer(connection, NOTICE_RESUMED);
        return NULL;
    case NOTICE_CLOCK_SET_BACK:
        clock_step_back(wall_ns);
        answer(connection, NOTICE_CLOCK_SET_BACK);
        return NULL;
    default:
        return NULL; /* of a later minor version */
    }
}

uint32_t notices_of_pauses(void)
{
    return pauses;
}
