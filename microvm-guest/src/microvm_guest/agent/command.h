/* Commands of the host: processes with pipes or a terminal, and what flows through those.
 *
 * A command's life, as events:
 *
 *   RUN -> fork -> the child reports (nothing: it has exec'ed; or an error) -> STARTED or ERROR
 *   the child ends -> what is in its pipes at that moment is sent -> EOFs -> EXIT
 *
 * A process it left behind may hold a pipe open for ever, so EXIT does not wait for the pipes'
 * end: bytes written after the command's own end are not sent, and the pipes are closed.
 *
 * Each command leads a session of its own. When the host lets go of it (CLOSE, or the connection
 * is lost) every process of that session is killed. */

#ifndef MICROVM_COMMAND_H
#define MICROVM_COMMAND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct command;
struct connection;
struct frame;

/* Each returns what the host did wrong, or NULL. */
const char *command_run(struct connection *connection, const struct frame *frame);
const char *command_stdin(struct command *command, const uint8_t *data, size_t length, bool eof);
const char *command_window(struct command *command, uint32_t channel, uint32_t bytes);
const char *command_signal(struct command *command, uint32_t signal);

void command_resize(struct command *command, uint16_t rows, uint16_t cols);

/* The host lets go: kill it, send nothing more but EXIT. */
void command_release(struct command *command);

struct command *command_find(struct connection *connection, uint32_t stream);

/* A child of ours has ended, one of the commands or an orphan. */
void command_reaped(pid_t pid, int status);

/* The connection is lost: kill its commands, but those that were asked to stay. */
void commands_disown(struct connection *connection);

/* The connection has room again: read on. */
void commands_rearm(struct connection *connection);

/* Send a signal to every command's process group. */
void commands_signal(int signal);

/* No more commands from now on. */
void commands_refuse(void);

unsigned commands_count(void);

#endif
