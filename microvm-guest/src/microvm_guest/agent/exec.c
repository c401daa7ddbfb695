#include "exec.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bytes.h"
#include "fields.h"
#include "launch.h"
#include "system.h"
#include "users.h"
#include "wire.h"

#define MAX_TEXTS (WIRE_MAX_PAYLOAD / 4) /* the shortest field is its tag and length */
#define MAX_INHERITED 256
#define REPORT_FD 3
#define PATH_DEFAULT "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Untouched pages cost nothing: only children write here, each to its own copy. */
static char *arguments[MAX_TEXTS + 1];
static char *variables[MAX_TEXTS + MAX_INHERITED + 1];
static size_t variable_count;

static int report_fd;

static _Noreturn void give_up(enum error_code code, const char *what, const char *name)
{
    uint8_t report[LAUNCH_MAX_REPORT];
    put_u32(report, code);
    int length = snprintf((char *)report + 4, sizeof report - 4, "%s %.200s: %s.", what, name,
                          strerror(errno));
    if (length > (int)sizeof report - 5)
        length = (int)sizeof report - 5;
    ssize_t written = write(report_fd, report, 4 + (size_t)length);
    _exit(written < 0 ? 126 : 127);
}

/* --- environment ------------------------------------------------------------------------- */

static bool same_name(const char *one, const char *other)
{
    size_t name = strcspn(one, "=");
    return strncmp(one, other, name) == 0 && other[name] == '=';
}

static char *variable(const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < variable_count; i++)
        if (strncmp(variables[i], name, length) == 0 && variables[i][length] == '=')
            return variables[i] + length + 1;
    return NULL;
}

static void add_unless_set(char *assignment)
{
    for (size_t i = 0; i < variable_count; i++)
        if (same_name(assignment, variables[i]))
            return;
    if (variable_count < MAX_TEXTS + MAX_INHERITED)
        variables[variable_count++] = assignment;
}

static void add_default(const char *name, const char *value)
{
    size_t size = strlen(name) + strlen(value) + 2;
    char *assignment = malloc(size);
    if (assignment != NULL) {
        snprintf(assignment, size, "%s=%s", name, value);
        add_unless_set(assignment);
    }
}

/* --- the steps --------------------------------------------------------------------------- */

struct wish {
    const char *cwd, *user;
};

/* Make C strings of the fields, in place. A field's NUL falls on the next field's tag, so that
 * one is read before it is written: first all positions, then all the NULs. */
static struct wish unpack(const struct launch *launch)
{
    struct wish wish = {.cwd = "/"};
    struct field_reader reader = {.next = launch->fields, .end = launch->fields_end};
    struct field field;
    size_t argument_count = 0;
    uint8_t *end = NULL;
    while (field_next(&reader, &field)) {
        char *text = (char *)(uintptr_t)field.value;
        if (end != NULL)
            *end = 0;
        end = (uint8_t *)text + field.length;
        if (field.tag == FIELD_ARG)
            arguments[argument_count++] = text;
        else if (field.tag == FIELD_ENV)
            variables[variable_count++] = text;
        else if (field.tag == FIELD_CWD)
            wish.cwd = text;
        else if (field.tag == FIELD_USER)
            wish.user = text;
    }
    if (end != NULL)
        *end = 0;
    return wish;
}

static void become(const char *name)
{
    struct user user;
    errno = 0;
    if (!user_find(name, &user)) {
        errno = errno ? errno : ENOENT;
        give_up(ERROR_USER, "No user", name);
    }
    if (geteuid() != user.uid || getegid() != user.gid || geteuid() == 0) {
        if (setgroups_raw(user.group_count, user.groups) != 0 ||
            setresgid(user.gid, user.gid, user.gid) != 0 ||
            setresuid(user.uid, user.uid, user.uid) != 0)
            give_up(ERROR_USER, "Can't become user", name);
    }
    add_default("HOME", user.home);
    if (user.name[0] != 0) {
        add_default("USER", user.name);
        add_default("LOGNAME", user.name);
    }
}

static void take_stdio(int in, int out, int err, bool tty)
{
    if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 || dup2(err, STDERR_FILENO) < 0)
        give_up(ERROR_RESOURCES, "Can't set up", "stdio");
    if (tty && ioctl(STDIN_FILENO, TIOCSCTTY, 0) != 0)
        give_up(ERROR_TTY, "Can't take", "the terminal");
    if (report_fd != REPORT_FD) {
        dup3(report_fd, REPORT_FD, O_CLOEXEC);
        report_fd = REPORT_FD;
    }
    if (syscall(SYS_close_range, REPORT_FD + 1, ~0u, 0) != 0) /* Linux before 5.9 */
        for (int fd = REPORT_FD + 1; fd < (int)sysconf(_SC_OPEN_MAX); fd++)
            close(fd);
}

/* The search of execvp(3), but by the command's own PATH, and without its shell for scripts that
 * name none. */
static _Noreturn void exec_program(void)
{
    const char *program = arguments[0];
    if (strchr(program, '/') != NULL) {
        execve(program, arguments, variables);
        give_up(errno == ENOENT || errno == ENOTDIR ? ERROR_NOT_FOUND : ERROR_EXEC, "Can't run",
                program);
    }
    const char *path = variable("PATH");
    bool forbidden = false;
    if (path == NULL)
        path = PATH_DEFAULT;
    for (;; path++) {
        char candidate[PATH_MAX];
        int directory = (int)strcspn(path, ":");
        int length = snprintf(candidate, sizeof candidate, "%.*s%s%s", directory, path,
                              directory > 0 ? "/" : "", program);
        if (program[0] != 0 && length < (int)sizeof candidate) {
            execve(candidate, arguments, variables);
            if (errno == EACCES)
                forbidden = true;
            else if (errno != ENOENT && errno != ENOTDIR)
                give_up(ERROR_EXEC, "Can't run", candidate);
        }
        path += directory;
        if (*path == 0)
            break;
    }
    errno = forbidden ? EACCES : ENOENT;
    give_up(forbidden ? ERROR_EXEC : ERROR_NOT_FOUND, "Can't run", program);
}

_Noreturn void exec_command(struct launch *launch, int in, int out, int err, int report)
{
    report_fd = report;
    setsid();
    take_stdio(in, out, err, launch->tty);
    struct wish wish = unpack(launch);
    if (wish.user != NULL && wish.user[0] != 0)
        become(wish.user);
    if (chdir(wish.cwd) != 0)
        give_up(ERROR_CWD, "Can't enter", wish.cwd);
    for (char **inherited = environ; *inherited != NULL; inherited++)
        add_unless_set(*inherited);
    add_default("PATH", PATH_DEFAULT);
    if (launch->tty)
        add_default("TERM", "xterm");
    system_restore_limits();
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    exec_program();
}
