/* Records: what a FILES command says on stdout and hears on stdin.
 *
 * u32 payload length, u8 kind, three zero bytes, payload. For the child that serves one such
 * command: it may block, and it ends (without cleaning up) when nobody reads what it says. */

#ifndef MICROVM_RECORDS_H
#define MICROVM_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "wire.h"

struct record {
    uint8_t kind;
    uint32_t length;
    const uint8_t *payload; /* valid until the next record_read() */
};

/* The next record on stdin. False at its end, also in the middle of a record, and for a header
 * that no host sends. */
bool record_read(struct record *record);

/* Where to put up to WIRE_MAX_RECORD bytes of payload for record_write(). */
uint8_t *record_room(void);

/* Say what stands in the room. It may be kept back until record_flush(). */
void record_write(uint8_t kind, size_t length);

/* FILE, DIRECTORY or SYMLINK; `target` NULL but for the last. */
void record_write_entry(uint8_t kind, const struct stat *info, const char *name,
                        const char *target);

void record_write_info(const struct stat *info, const char *name, const char *target);
void record_write_error(int error, const char *path);

void record_flush(void);

#endif
