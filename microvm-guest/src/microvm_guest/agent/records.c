#include "records.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"

#define OUT_BYTES (2 * (WIRE_RECORD_BYTES + WIRE_MAX_RECORD))
#define NS_PER_S 1000000000ull

static uint8_t in[WIRE_MAX_RECORD];
static uint8_t out[OUT_BYTES];
static size_t out_length;

/* --- in ---------------------------------------------------------------------------------- */

static bool read_all(uint8_t *into, size_t length)
{
    while (length > 0) {
        ssize_t got = read(STDIN_FILENO, into, length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        into += got;
        length -= (size_t)got;
    }
    return true;
}

bool record_read(struct record *record)
{
    uint8_t header[WIRE_RECORD_BYTES];
    if (!read_all(header, sizeof header))
        return false;
    record->length = get_u32(header);
    record->kind = header[4];
    record->payload = in;
    if (record->length > WIRE_MAX_RECORD || header[5] != 0 || get_u16(header + 6) != 0)
        return false;
    return read_all(in, record->length);
}

/* --- out --------------------------------------------------------------------------------- */

void record_flush(void)
{
    for (size_t at = 0; at < out_length;) {
        ssize_t written = write(STDOUT_FILENO, out + at, out_length - at);
        if (written < 0 && errno != EINTR)
            _exit(1); /* nobody reads it */
        at += written > 0 ? (size_t)written : 0;
    }
    out_length = 0;
}

uint8_t *record_room(void)
{
    if (OUT_BYTES - out_length < WIRE_RECORD_BYTES + WIRE_MAX_RECORD)
        record_flush();
    return out + out_length + WIRE_RECORD_BYTES;
}

void record_write(uint8_t kind, size_t length)
{
    record_room(); /* an empty record has asked for none */
    uint8_t *header = out + out_length;
    put_u32(header, (uint32_t)length);
    put_u32(header + 4, kind);
    out_length += WIRE_RECORD_BYTES + length;
}

static uint64_t mtime_ns(const struct stat *info)
{
    return (uint64_t)info->st_mtim.tv_sec * NS_PER_S + (uint64_t)info->st_mtim.tv_nsec;
}

/* Names are a directory's, 255 bytes, and targets a page at most: they fit. */
static size_t put_text(uint8_t *at, const char *text)
{
    size_t length = strnlen(text, WIRE_MAX_RECORD / 4);
    memcpy(at, text, length);
    return length;
}

void record_write_entry(uint8_t kind, const struct stat *info, const char *name,
                        const char *target)
{
    uint8_t *room = record_room(), *at = room + 12;
    put_u32(room, info->st_mode & 07777);
    put_u64(room + 4, mtime_ns(info));
    if (target != NULL) {
        put_u16(at, (uint16_t)strlen(name));
        at += 2;
    }
    at += put_text(at, name);
    if (target != NULL)
        at += put_text(at, target);
    record_write(kind, (size_t)(at - room));
}

void record_write_info(const struct stat *info, const char *name, const char *target)
{
    uint8_t *room = record_room(), *at = room + 30;
    put_u32(room, info->st_mode);
    put_u32(room + 4, info->st_uid);
    put_u32(room + 8, info->st_gid);
    put_u64(room + 12, (uint64_t)info->st_size);
    put_u64(room + 20, mtime_ns(info));
    size_t length = put_text(at, name);
    put_u16(room + 28, (uint16_t)length);
    at += length;
    at += put_text(at, target);
    record_write(RECORD_INFO, (size_t)(at - room));
}

void record_write_error(int error, const char *path)
{
    uint8_t *room = record_room();
    put_u32(room, (uint32_t)error);
    record_write(RECORD_ERROR, 4 + put_text(room + 4, path));
}
