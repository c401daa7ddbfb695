/* Bytes both ways between two sockets, each way with an end of its own.
 *
 * A way reads only when what it read before has been written: so a slow reader holds up its writer
 * and nobody else, and a relay holds no more than RELAY_BYTES for each of its two ways. What the
 * other socket takes at once is never copied; a buffer exists while bytes wait. */

#ifndef MICROVM_RELAY_H
#define MICROVM_RELAY_H

#include <stdbool.h>

/* Carry bytes between two connected, non-blocking sockets until both ways have ended or one socket
 * has failed; then both are closed and `ended` is called, once. Takes over both. False, and both are
 * closed, when there is no memory; `ended` is then not called. */
bool relay_start(int one, int other, void (*ended)(void));

#endif
