/* What process 1 owes its guest, and what this process changes of itself. */

#ifndef MICROVM_SYSTEM_H
#define MICROVM_SYSTEM_H

#include <stdbool.h>
#include <stddef.h>

/* Make sure that descriptors 0, 1 and 2 are open: nothing of ours may get those numbers. */
void system_open_stdio(void);

/* As process 1: mounts, the root disk if there is one, device links, hostname, loopback,
 * environment. What fails is logged and left: a guest without cgroups still runs commands. */
void system_set_up(void);

/* As many descriptors as the system allows, for a thousand commands' pipes. */
void system_raise_limits(void);

/* In a child: the limit as it was. */
void system_restore_limits(void);

/* The last word `microvm.<name>=<value>` of the kernel's command line, if one is there and its
 * value fits. */
bool system_word(const char *name, char *value, size_t size);

/* The same as a number, or `fallback`. */
unsigned system_option(const char *name, unsigned fallback);

void system_log(const char *what, const char *which);

#endif
