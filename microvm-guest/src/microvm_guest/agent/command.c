#include "command.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "bytes.h"
#include "connection.h"
#include "input.h"
#include "jobs.h"
#include "launch.h"
#include "requests.h"
#include "session.h"

#define TERMINAL_HOLDS 65536 /* at least what a terminal can hold of a command that has ended */

struct output {
    struct watch watch; /* first: the loop hands it back */
    struct command *command;
    uint8_t type;
    uint32_t window; /* bytes the host will still take */
    size_t last;     /* of an ended command: bytes that are still its own */
};

struct command {
    struct command *next;
    struct connection *connection; /* NULL: nobody is told of it any more */
    uint32_t stream;
    pid_t pid; /* 0: reaped */
    int status;
    bool started, tty, keep;
    bool tidies; /* it ends by itself when its pipes are closed, and leaves nothing half made */
    bool released; /* the host let go: only EXIT is sent */
    struct watch report;
    struct input in;
    struct output out, err;
};

static struct command *commands;
static unsigned count;
static bool refusing;

#define FOR_EACH_COMMAND_OF(it, whose)                                                            \
    for (struct command *it = commands; it != NULL; it = it->next)                                \
        if (it->connection == (whose))

static void forget(struct command *command)
{
    struct command **link = &commands;
    while (*link != command)
        link = &(*link)->next;
    *link = command->next;
    count--;
    watch_close(&command->report);
    watch_close(&command->out.watch);
    watch_close(&command->err.watch);
    input_close(&command->in);
    free(command);
    connections_resume_accept();
}

static void send_exit(struct command *command)
{
    uint8_t payload[8];
    put_u32(payload, WIFEXITED(command->status) ? (uint32_t)WEXITSTATUS(command->status) : 0);
    put_u32(payload + 4, WIFSIGNALED(command->status) ? (uint32_t)WTERMSIG(command->status) : 0);
    connection_send(command->connection, FRAME_EXIT, 0, command->stream, payload, sizeof payload);
}

/* Has everything been said that there is to say? Then this was the end of `command`. */
static void finish_if_done(struct command *command)
{
    bool silent = command->out.watch.fd < 0 && command->err.watch.fd < 0;
    if (command->pid != 0 || !silent)
        return;
    if (command->connection != NULL)
        send_exit(command);
    forget(command);
}

/* --- output ------------------------------------------------------------------------------ */

static void await_output(struct output *output)
{
    struct command *command = output->command;
    bool wanted = command->started && output->window > 0 && !command->connection->full;
    if (!watch_for(&output->watch, wanted ? EPOLLIN : 0))
        command->connection->broken = true; /* no memory for the watch */
}

/* Read once and send it. False when there is no more to be had now. */
static bool pass_on(struct output *output)
{
    struct command *command = output->command;
    struct connection *connection = command->connection;
    size_t room;
    uint8_t *into = output->watch.fd < 0 || output->window == 0
                        ? NULL
                        : connection_room(connection, &room);
    if (into == NULL)
        return false;
    bool ended = command->pid == 0;
    if (room > output->window)
        room = output->window;
    if (ended && room > output->last)
        room = output->last;
    ssize_t got = read(output->watch.fd, into, room);
    if (got < 0 && (errno == EINTR || (errno == EAGAIN && !ended)))
        return false;
    if (got < 0) /* EIO: nobody has the terminal open any more */
        got = 0;
    output->window -= (uint32_t)got;
    if (ended)
        output->last -= (size_t)got;
    bool eof = got == 0 || (ended && output->last == 0);
    connection_commit(connection, output->type, eof ? FLAG_EOF : 0, command->stream, (size_t)got);
    if (eof)
        watch_close(&output->watch);
    return !eof;
}

static void output_ready(struct watch *watch, uint32_t events)
{
    struct output *output = (struct output *)watch;
    struct command *command = output->command;
    (void)events;
    pass_on(output);
    await_output(output);
    finish_if_done(command);
}

/* The command has ended: what its pipe holds now is its last words. */
static void drain(struct output *output)
{
    struct command *command = output->command;
    int held = 0;
    if (output->watch.fd < 0)
        return;
    output->last = command->tty ? TERMINAL_HOLDS
                   : ioctl(output->watch.fd, FIONREAD, &held) == 0 ? (size_t)held
                                                                   : 0;
    if (output->last == 0) {
        connection_send(command->connection, output->type, FLAG_EOF, command->stream, NULL, 0);
        watch_close(&output->watch);
    }
    while (pass_on(output))
        ;
    await_output(output);
}

static void open_output(struct output *output, struct command *command, int fd, uint8_t type,
                        uint32_t window)
{
    output->command = command;
    output->type = type;
    output->window = window;
    watch_open(&output->watch, fd, output_ready);
}

/* --- the beginning ----------------------------------------------------------------------- */

/* The child's report: its end is exec's success, anything else an ERROR's payload. */
static void read_report(struct command *command)
{
    uint8_t report[LAUNCH_MAX_REPORT], payload[4];
    ssize_t got = read(command->report.fd, report, sizeof report);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    watch_close(&command->report);
    if (command->connection == NULL || command->released)
        return;
    if (got > 4) {
        connection_send(command->connection, FRAME_ERROR, 0, command->stream, report, (size_t)got);
        command->connection = NULL; /* that was its last frame */
        watch_close(&command->out.watch);
        watch_close(&command->err.watch);
        input_close(&command->in);
        return;
    }
    command->started = true;
    put_u32(payload, (uint32_t)command->pid);
    connection_send(command->connection, FRAME_STARTED, 0, command->stream, payload, 4);
    input_start(&command->in);
    await_output(&command->out);
    await_output(&command->err);
}

static void report_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    read_report((struct command *)((char *)watch - offsetof(struct command, report)));
}

const char *command_run(struct connection *connection, const struct frame *frame)
{
    struct launch launch;
    const char *wrong = launch_parse(&launch, frame->payload, frame->length);
    if (wrong != NULL)
        return wrong;
    if (refusing || count >= WIRE_MAX_COMMANDS) {
        connection_send_error(connection, frame->stream, ERROR_BUSY,
                              refusing ? "The guest is going down."
                                       : "As many commands run as the agent allows.");
        return NULL;
    }
    if (launch.flags & RUN_DETACH) {
        job_run(connection, frame->stream, &launch);
        return NULL;
    }
    struct command *command = calloc(1, sizeof *command);
    const char *why = "Out of memory.";
    uint32_t error = command == NULL ? ERROR_RESOURCES : launch_start(&launch, &why);
    if (error != 0) {
        connection_send_error(connection, frame->stream, error, why);
        free(command);
        return NULL;
    }
    command->next = commands;
    commands = command;
    count++;
    command->connection = connection;
    command->stream = frame->stream;
    command->pid = launch.pid;
    command->tty = launch.tty;
    command->keep = (launch.flags & RUN_KEEP) != 0;
    command->tidies = (launch.flags & RUN_FILES) && !(launch.flags & RUN_NO_STDIN);
    watch_open(&command->report, launch.report, report_ready);
    open_output(&command->out, command, launch.out, FRAME_STDOUT, launch.window);
    open_output(&command->err, command, launch.err, FRAME_STDERR, launch.window);
    input_open(&command->in, launch.in, launch.tty, connection, frame->stream);
    read_report(command); /* an ordinary command has exec'ed by now */
    if (!watch_for(&command->report, EPOLLIN))
        connection->broken = true;
    return NULL;
}

/* --- requests ---------------------------------------------------------------------------- */

struct command *command_find(struct connection *connection, uint32_t stream)
{
    FOR_EACH_COMMAND_OF (it, connection)
        if (it->stream == stream)
            return it;
    return NULL;
}

const char *command_stdin(struct command *command, const uint8_t *data, size_t length, bool eof)
{
    if (command->released)
        return NULL;
    return input_put(&command->in, data, length, eof);
}

const char *command_window(struct command *command, uint32_t channel, uint32_t bytes)
{
    struct output *output = channel == CHANNEL_STDOUT   ? &command->out
                            : channel == CHANNEL_STDERR ? &command->err
                                                        : NULL;
    if (output == NULL)
        return "A WINDOW names no output.";
    if (bytes > WIRE_MAX_WINDOW - output->window)
        return "A WINDOW opens an output further than is allowed.";
    output->window += bytes;
    if (output->watch.fd < 0)
        return NULL;
    if (command->pid == 0)
        while (pass_on(output))
            ;
    await_output(output);
    finish_if_done(command);
    return NULL;
}

const char *command_signal(struct command *command, uint32_t signal)
{
    if (signal < 1 || signal > 64)
        return "A KILL names no signal.";
    /* until the child leads its own session it has no group, and the signal is for it alone */
    if (command->pid != 0 && kill(-command->pid, (int)signal) != 0 && errno == ESRCH)
        kill(command->pid, (int)signal);
    return NULL;
}

void command_resize(struct command *command, uint16_t rows, uint16_t cols)
{
    struct winsize size = {.ws_row = rows, .ws_col = cols};
    if (command->tty && command->out.watch.fd >= 0)
        ioctl(command->out.watch.fd, TIOCSWINSZ, &size);
}

/* --- the end ----------------------------------------------------------------------------- */

static bool abandoned(pid_t session)
{
    for (struct command *it = commands; it != NULL; it = it->next)
        if (it->pid == session)
            return it->released && !it->keep && !it->tidies;
    return false;
}

/* Close what leads to it and kill it. Closing a terminal hangs it up (SIGHUP) first. */
static void let_go(struct command *command)
{
    command->released = true;
    watch_close(&command->out.watch);
    watch_close(&command->err.watch);
    input_close(&command->in);
    if (command->pid != 0 && !command->keep && !command->tidies) {
        kill(-command->pid, SIGKILL);
        kill(command->pid, SIGKILL);
    }
}

void command_release(struct command *command)
{
    command->keep = false;
    let_go(command);
    session_kill(abandoned);
    finish_if_done(command);
}

void command_reaped(pid_t pid, int status)
{
    struct command *command = commands;
    while (command != NULL && command->pid != pid)
        command = command->next;
    if (command == NULL) {
        job_reaped(pid, status);
        return;
    }
    if (command->report.fd >= 0)
        read_report(command);
    command->pid = 0;
    command->status = status;
    if (command->connection != NULL) {
        drain(&command->out);
        drain(&command->err);
    }
    finish_if_done(command);
}

void commands_disown(struct connection *connection)
{
    bool any = false;
    struct command *next;
    FOR_EACH_COMMAND_OF (command, connection) {
        command->connection = NULL;
        let_go(command);
        any |= !command->keep;
    }
    if (any)
        session_kill(abandoned);
    jobs_disown(connection);
    for (struct command *command = commands; command != NULL; command = next) {
        next = command->next;
        if (command->connection == NULL)
            finish_if_done(command);
    }
}

void commands_rearm(struct connection *connection)
{
    struct command *next;
    for (struct command *command = commands; command != NULL; command = next) {
        next = command->next;
        if (command->connection != connection)
            continue;
        struct output *outputs[] = {&command->out, &command->err};
        for (int i = 0; i < 2; i++) {
            if (command->pid == 0)
                while (pass_on(outputs[i]))
                    ;
            await_output(outputs[i]);
        }
        input_rearm(&command->in);
        finish_if_done(command);
    }
    jobs_rearm(connection);
}

void commands_signal(int signal)
{
    for (struct command *it = commands; it != NULL; it = it->next)
        command_signal(it, (uint32_t)signal);
    jobs_signal(signal);
}

void commands_refuse(void)
{
    refusing = true;
}

unsigned commands_count(void)
{
    return count;
}
