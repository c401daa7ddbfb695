/* What the agent says of itself and its guest. */

#ifndef MICROVM_STATUS_H
#define MICROVM_STATUS_H

#include "fields.h"

void status_put_identity(struct field_writer *writer);
void status_put_system(struct field_writer *writer);

#endif
