/* The child's half of a launch.
 *
 * The child may share its parent's memory (vfork), so everything that needs memory of its own is
 * laid out before it exists: exec_prepare() makes the strings, and the child only reads them. It
 * calls nothing that allocates or locks. */

#ifndef MICROVM_EXEC_H
#define MICROVM_EXEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct user;

struct exec_plan {
    bool tty;
    bool files; /* not a program: serve its arguments ourselves */
    int in, out, err; /* what becomes stdio */
    int report;       /* where an ERROR's payload goes if the command can't be */
    const struct user *user; /* NULL: stay who we are */
    const char *cwd;         /* set by exec_prepare() */
};

/* Lay out arguments and environment from a RUN's checked fields. One plan at a time. */
void exec_prepare(struct exec_plan *plan, const uint8_t *fields, size_t length);

/* Become the command. Runs in the child and does not return. */
_Noreturn void exec_command(const struct exec_plan *plan);

#endif
