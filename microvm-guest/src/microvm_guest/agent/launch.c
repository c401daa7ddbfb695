#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "bytes.h"
#include "clock.h"
#include "exec.h"
#include "fields.h"
#include "network.h"
#include "users.h"
#include "wire.h"

#define FILES_PIPE_BYTES (256 * 1024)

static const char *check_text(const struct field *field)
{
    if (memchr(field->value, 0, field->length) != NULL)
        return "A text in a RUN holds a NUL byte.";
    return NULL;
}

const char *launch_parse(struct launch *launch, const uint8_t *fields, size_t length)
{
    *launch = (struct launch){.fields = fields,
                              .fields_length = length,
                              .ordinary = true,
                              .log_bytes = WIRE_LOG_BYTES};
    struct field_reader reader = {.next = fields, .end = fields + length};
    struct field field;
    unsigned args = 0;
    const char *wrong = NULL;
    while (wrong == NULL && field_next(&reader, &field)) {
        switch (field.tag) {
        case FIELD_ARG:
            wrong = check_text(&field);
            if (args++ == 0 && memchr(field.value, '/', field.length) != NULL)
                launch->ordinary = false;
            break;
        case FIELD_ENV:
            wrong = check_text(&field);
            if (wrong == NULL && memchr(field.value, '=', field.length) == NULL)
                wrong = "A variable in a RUN has no value.";
            if (field.length >= 5 && memcmp(field.value, "PATH=", 5) == 0)
                launch->ordinary = false;
            break;
        case FIELD_CWD:
            wrong = check_text(&field);
            launch->ordinary = false;
            break;
        case FIELD_USER:
            wrong = check_text(&field);
            launch->user = field.value;
            launch->user_length = field.length;
            break;
        case FIELD_TTY:
            if (field.length != 4)
                return "A RUN's terminal size is not two numbers.";
            launch->tty = true;
            launch->rows = get_u16(field.value);
            launch->cols = get_u16(field.value + 2);
            break;
        case FIELD_WINDOW:
            if (field.length != 4 || get_u32(field.value) > WIRE_MAX_WINDOW)
                return "A RUN's window is out of bounds.";
            launch->window = get_u32(field.value);
            break;
        case FIELD_RUN_FLAGS:
            if (field.length != 4)
                return "A RUN's flags are not one number.";
            launch->flags = get_u32(field.value);
            if (launch->flags & RUN_FILES)
                launch->ordinary = false;
            break;
        case FIELD_LOG_BYTES:
            if (field.length != 4 || get_u32(field.value) == 0 ||
                get_u32(field.value) > WIRE_MAX_LOG_BYTES)
                return "A RUN's log is out of bounds.";
            launch->log_bytes = get_u32(field.value);
            break;
        case FIELD_WALL_TIME:
            if (field.length == 8)
                clock_hint(get_u64(field.value));
            break;
        }
    }
    if (wrong == NULL && reader.malformed)
        wrong = "A RUN ends inside a field.";
    if (wrong == NULL && args == 0)
        wrong = "A RUN names no program.";
    bool silent = (launch->flags & RUN_MERGE) && (launch->flags & RUN_NO_STDIN) && !launch->tty;
    if (wrong == NULL && (launch->flags & RUN_DETACH) && !silent)
        wrong = "A job has neither a terminal nor stdin, and one output.";
    return wrong;
}

/* A pipe whose end `ours` (0 read, 1 write) does not block. The other one does: it is stdio. */
static bool make_pipe(int ends[2], int ours)
{
    if (pipe2(ends, O_CLOEXEC) != 0) {
        ends[0] = ends[1] = -1;
        return false;
    }
    fcntl(ends[ours], F_SETFL, O_NONBLOCK);
    return true;
}

static void close_if(int fd)
{
    if (fd >= 0)
        close(fd);
}

/* Both ends of everything, by what they are to the child. */
struct plumbing {
    int report[2], in[2], out[2], err[2];
};

static bool open_terminal(struct plumbing *pipes, const struct launch *launch)
{
    int unlocked = 0;
    struct winsize size = {.ws_row = launch->rows, .ws_col = launch->cols};
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0)
        return false;
    pipes->out[0] = master;
    if (ioctl(master, TIOCSPTLCK, &unlocked) != 0 || ioctl(master, TIOCSWINSZ, &size) != 0)
        return false;
    pipes->in[0] = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    /* two descriptors for the one terminal: epoll knows a descriptor once */
    pipes->in[1] = fcntl(master, F_DUPFD_CLOEXEC, 3);
    return pipes->in[0] >= 0 && pipes->in[1] >= 0;
}

static bool open_pipes(struct plumbing *pipes, const struct launch *launch)
{
    if (launch->flags & RUN_NO_STDIN)
        pipes->in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    else
        make_pipe(pipes->in, 1);
    return pipes->in[0] >= 0 && make_pipe(pipes->out, 0) &&
           ((launch->flags & RUN_MERGE) || make_pipe(pipes->err, 0));
}

static void close_plumbing(struct plumbing *pipes, bool whole)
{
    close_if(pipes->report[1]);
    close_if(pipes->in[0]);
    close_if(pipes->out[1]);
    close_if(pipes->err[1]);
    if (!whole)
        return;
    close_if(pipes->report[0]);
    close_if(pipes->in[1]);
    close_if(pipes->out[0]);
    close_if(pipes->err[0]);
}

static bool find_user(const struct launch *launch, struct user *user, const char **why)
{
    static char missing[192];
    char name[128];
    snprintf(name, sizeof name, "%.*s", (int)launch->user_length, (const char *)launch->user);
    if (launch->user_length < sizeof name && user_find(name, user))
        return true;
    snprintf(missing, sizeof missing, "There is no user %s.", name);
    *why = missing;
    return false;
}

uint32_t launch_start(struct launch *launch, const char **why)
{
    struct plumbing pipes = {{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}};
    struct user user;
    if (launch->user != NULL && !find_user(launch, &user, why))
        return ERROR_USER;
    bool opened = launch->tty ? open_terminal(&pipes, launch) : open_pipes(&pipes, launch);
    if (!opened || !make_pipe(pipes.report, 0)) {
        bool no_terminal = launch->tty && errno != EMFILE && errno != ENFILE && errno != ENOMEM;
        *why = strerror(errno);
        close_plumbing(&pipes, true);
        return no_terminal ? ERROR_TTY : ERROR_RESOURCES;
    }
    if (launch->flags & RUN_FILES) { /* fewer turns of three processes; failing is fine */
        fcntl(pipes.in[0], F_SETPIPE_SZ, FILES_PIPE_BYTES);
        fcntl(pipes.out[0], F_SETPIPE_SZ, FILES_PIPE_BYTES);
    }
    struct exec_plan plan = {
        .tty = launch->tty,
        .files = (launch->flags & RUN_FILES) != 0,
        .in = pipes.in[0],
        .out = launch->tty ? pipes.in[0] : pipes.out[1],
        .report = pipes.report[1],
        .user = launch->user != NULL ? &user : NULL,
    };
    plan.err = pipes.err[1] >= 0 ? pipes.err[1] : plan.out;
    exec_prepare(&plan, launch->fields, launch->fields_length);
    /* one that waits must not have its parent wait too, as vfork(2) does */
    bool early = network_pending();
    pid_t pid = launch->ordinary && !early ? vfork() : fork();
    if (pid == 0) {
        if (early)
            network_wait();
        exec_command(&plan);
    }
    if (pid < 0) {
        *why = strerror(errno);
        close_plumbing(&pipes, true);
        return ERROR_RESOURCES;
    }
    close_plumbing(&pipes, false);
    launch->pid = pid;
    launch->report = pipes.report[0];
    launch->in = pipes.in[1];
    launch->out = pipes.out[0];
    launch->err = pipes.err[0];
    return 0;
}
