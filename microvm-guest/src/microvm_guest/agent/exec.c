#include "exec.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bytes.h"
#include "fields.h"
#include "files.h"
#include "launch.h"
#include "system.h"
#include "users.h"
#include "wire.h"

#define MAX_TEXTS (WIRE_MAX_PAYLOAD / 4) /* the shortest field is its tag and length */
#define MAX_INHERITED 256
#define REPORT_FD 3
#define PATH_DEFAULT "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static char texts[WIRE_MAX_PAYLOAD + 1]; /* a copy of the RUN's fields, cut into C strings */
static char *arguments[MAX_TEXTS + 1];
static char *variables[MAX_TEXTS + MAX_INHERITED + 1];
static size_t variable_count;

static char default_path[] = "PATH=" PATH_DEFAULT;
static char default_term[] = "TERM=xterm";
static char user_home[sizeof "HOME=" + sizeof((struct user *)0)->home];
static char user_name[sizeof "USER=" + sizeof((struct user *)0)->name];
static char user_logname[sizeof "LOGNAME=" + sizeof((struct user *)0)->name];

/* --- before there is a child ------------------------------------------------------------- */

static bool same_name(const char *one, const char *other)
{
    size_t name = strcspn(one, "=");
    return strncmp(one, other, name) == 0 && other[name] == '=';
}

static void add_unless_set(char *assignment)
{
    for (size_t i = 0; i < variable_count; i++)
        if (same_name(assignment, variables[i]))
            return;
    if (variable_count < MAX_TEXTS + MAX_INHERITED)
        variables[variable_count++] = assignment;
}

/* Make C strings of the fields, in place. A text's NUL falls on the next field's tag, so that tag
 * is read before the NUL is written. */
static void unpack(struct exec_plan *plan, size_t length)
{
    struct field_reader reader = {.next = (uint8_t *)texts, .end = (uint8_t *)texts + length};
    struct field field;
    size_t argument_count = 0;
    char *end = NULL;
    while (field_next(&reader, &field)) {
        char *text = texts + (field.value - (uint8_t *)texts);
        if (end != NULL)
            *end = 0;
        end = text + field.length;
        if (field.tag == FIELD_ARG)
            arguments[argument_count++] = text;
        else if (field.tag == FIELD_ENV)
            variables[variable_count++] = text;
        else if (field.tag == FIELD_CWD)
            plan->cwd = text;
    }
    *end = 0;
    arguments[argument_count] = NULL;
}

/* First come, first kept: what was asked for, what the user brings, what we have, defaults. */
void exec_prepare(struct exec_plan *plan, const uint8_t *fields, size_t length)
{
    memcpy(texts, fields, length);
    variable_count = 0;
    plan->cwd = "/";
    unpack(plan, length);
    if (plan->user != NULL) {
        snprintf(user_home, sizeof user_home, "HOME=%s", plan->user->home);
        add_unless_set(user_home);
    }
    if (plan->user != NULL && plan->user->name[0] != 0) {
        snprintf(user_name, sizeof user_name, "USER=%s", plan->user->name);
        snprintf(user_logname, sizeof user_logname, "LOGNAME=%s", plan->user->name);
        add_unless_set(user_name);
        add_unless_set(user_logname);
    }
    for (char **inherited = environ; *inherited != NULL; inherited++)
        add_unless_set(*inherited);
    add_unless_set(default_path);
    if (plan->tty)
        add_unless_set(default_term);
    variables[variable_count] = NULL;
}

/* --- in the child ------------------------------------------------------------------------ */

static _Noreturn void give_up(int report, enum error_code code, const char *what, const char *name)
{
    uint8_t payload[LAUNCH_MAX_REPORT];
    put_u32(payload, code);
    int length = snprintf((char *)payload + 4, sizeof payload - 4, "%s %.200s: %s.", what, name,
                          strerror(errno));
    if (length > (int)sizeof payload - 5)
        length = (int)sizeof payload - 5;
    ssize_t written = write(report, payload, 4 + (size_t)length);
    _exit(written < 0 ? 126 : 127);
}

static void become(const struct user *user, int report)
{
    if (geteuid() == user->uid && getegid() == user->gid && geteuid() != 0)
        return; /* one who is not root already is who it asks to be */
    /* by system call: libc's own would tell this process's threads, and take their lock */
    if (syscall(SYS_setgroups, user->group_count, user->groups) != 0 ||
        syscall(SYS_setresgid, user->gid, user->gid, user->gid) != 0 ||
        syscall(SYS_setresuid, user->uid, user->uid, user->uid) != 0)
        give_up(report, ERROR_USER, "Can't become user", user->name);
}

static void take_stdio(const struct exec_plan *plan)
{
    if (dup2(plan->in, STDIN_FILENO) < 0 || dup2(plan->out, STDOUT_FILENO) < 0 ||
        dup2(plan->err, STDERR_FILENO) < 0)
        give_up(plan->report, ERROR_RESOURCES, "Can't set up", "stdio");
    if (plan->tty && ioctl(STDIN_FILENO, TIOCSCTTY, 0) != 0)
        give_up(plan->report, ERROR_TTY, "Can't take", "the terminal");
    if (plan->report != REPORT_FD)
        dup3(plan->report, REPORT_FD, O_CLOEXEC);
    if (syscall(SYS_close_range, REPORT_FD + 1, ~0u, 0) != 0) /* Linux before 5.9 */
        for (int fd = REPORT_FD + 1; fd < (int)sysconf(_SC_OPEN_MAX); fd++)
            close(fd);
}

static const char *search_path(void)
{
    for (size_t i = 0; i < variable_count; i++)
        if (strncmp(variables[i], "PATH=", 5) == 0)
            return variables[i] + 5;
    return PATH_DEFAULT;
}

/* The search of execvp(3), but by the command's own PATH, and without its shell for scripts that
 * name none. */
static _Noreturn void exec_program(void)
{
    const char *program = arguments[0];
    if (strchr(program, '/') != NULL) {
        execve(program, arguments, variables);
        give_up(REPORT_FD, errno == ENOENT || errno == ENOTDIR ? ERROR_NOT_FOUND : ERROR_EXEC,
                "Can't run", program);
    }
    bool forbidden = false;
    for (const char *path = search_path();; path++) {
        char candidate[PATH_MAX];
        int directory = (int)strcspn(path, ":");
        int length = snprintf(candidate, sizeof candidate, "%.*s%s%s", directory, path,
                              directory > 0 ? "/" : "", program);
        if (program[0] != 0 && length < (int)sizeof candidate) {
            /* a failing execve(2) makes and frees an address space first: ask before */
            if (access(candidate, X_OK) == 0)
                execve(candidate, arguments, variables);
            if (errno == EACCES)
                forbidden = true;
            else if (errno != ENOENT && errno != ENOTDIR)
                give_up(REPORT_FD, ERROR_EXEC, "Can't run", candidate);
        }
        path += directory;
        if (*path == 0)
            break;
    }
    errno = forbidden ? EACCES : ENOENT;
    give_up(REPORT_FD, forbidden ? ERROR_EXEC : ERROR_NOT_FOUND, "Can't run", program);
}

_Noreturn void exec_command(const struct exec_plan *plan)
{
    setsid();
    take_stdio(plan);
    if (plan->user != NULL)
        become(plan->user, REPORT_FD);
    if (chdir(plan->cwd) != 0)
        give_up(REPORT_FD, ERROR_CWD, "Can't enter", plan->cwd);
    system_restore_limits();
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (plan->files) {
        close(REPORT_FD); /* as exec does */
        files_serve(arguments);
    }
    exec_program();
}
