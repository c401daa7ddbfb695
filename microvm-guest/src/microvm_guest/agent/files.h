/* FILES commands: the agent's own way with the guest's files, where there may be no other program.
 *
 * Each is served by a child of its own, which is launched as a command is: so it has the user that
 * was asked for, blocks nobody, is held up by a host that does not read, and can be let go of. */

#ifndef MICROVM_FILES_H
#define MICROVM_FILES_H

/* Serve the words of one such command on stdin and stdout. Runs in the child. */
_Noreturn void files_serve(char *const *words);

#endif
