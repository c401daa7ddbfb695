#include "fields.h"

#include <string.h>

#include "bytes.h"

#define TAG_AND_LENGTH 4

bool field_next(struct field_reader *reader, struct field *field)
{
    size_t left = (size_t)(reader->end - reader->next);
    if (left == 0)
        return false;
    if (left < TAG_AND_LENGTH || left - TAG_AND_LENGTH < get_u16(reader->next + 2)) {
        reader->malformed = true;
        return false;
    }
    field->tag = get_u16(reader->next);
    field->length = get_u16(reader->next + 2);
    field->value = reader->next + TAG_AND_LENGTH;
    reader->next = field->value + field->length;
    return true;
}

void field_put(struct field_writer *writer, uint16_t tag, const void *value, size_t length)
{
    if (writer->capacity - writer->length < TAG_AND_LENGTH + length)
        return;
    uint8_t *at = writer->start + writer->length;
    put_u16(at, tag);
    put_u16(at + 2, (uint16_t)length);
    memcpy(at + TAG_AND_LENGTH, value, length);
    writer->length += TAG_AND_LENGTH + length;
}

void field_put_text(struct field_writer *writer, uint16_t tag, const char *text)
{
    field_put(writer, tag, text, strlen(text));
}

void field_put_u32(struct field_writer *writer, uint16_t tag, uint32_t value)
{
    uint8_t raw[4];
    put_u32(raw, value);
    field_put(writer, tag, raw, sizeof raw);
}

void field_put_u64(struct field_writer *writer, uint16_t tag, uint64_t value)
{
    uint8_t raw[8];
    put_u64(raw, value);
    field_put(writer, tag, raw, sizeof raw);
}
