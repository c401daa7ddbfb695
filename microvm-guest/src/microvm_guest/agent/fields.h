/* Tagged fields, the payload of HELLO, RUN and STATUS: u16 tag, u16 length, value, and so on
 * to the payload's end. A tag that a reader does not know is skipped: minor versions add tags. */

#ifndef MICROVM_FIELDS_H
#define MICROVM_FIELDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct field {
    uint16_t tag;
    uint16_t length;
    const uint8_t *value;
};

struct field_reader {
    const uint8_t *next;
    const uint8_t *end;
    bool malformed; /* the payload ended inside a field */
};

/* The next field, or false at the end; then ask `malformed`. */
bool field_next(struct field_reader *reader, struct field *field);

struct field_writer {
    uint8_t *start;
    size_t length;
    size_t capacity; /* a field that does not fit is left out: callers size for all of theirs */
};

void field_put(struct field_writer *writer, uint16_t tag, const void *value, size_t length);
void field_put_text(struct field_writer *writer, uint16_t tag, const char *text);
void field_put_u32(struct field_writer *writer, uint16_t tag, uint32_t value);
void field_put_u64(struct field_writer *writer, uint16_t tag, uint64_t value);

#endif
