/* The child's half of a launch. */

#ifndef MICROVM_EXEC_H
#define MICROVM_EXEC_H

struct launch;

/* Become the command that `launch` asks for, with these descriptors as stdio; write an ERROR's
 * payload to `report` if that can't be. Runs in the child of a fork and does not return. */
_Noreturn void exec_command(struct launch *launch, int in, int out, int err, int report);

#endif
