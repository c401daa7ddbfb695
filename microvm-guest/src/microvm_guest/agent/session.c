#include "session.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* proc(5), /proc/pid/stat: pid (comm) state ppid pgrp session ... The name may hold anything, also
 * parentheses and spaces, so the rest is found behind the last one. */
static pid_t session_of(const char *pid)
{
    char path[32], text[512];
    snprintf(path, sizeof path, "/proc/%.10s/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return 0;
    text[length] = 0;
    char *rest = strrchr(text, ')');
    if (rest == NULL)
        return 0;
    for (int skipped = 0; skipped < 4 && rest != NULL; skipped++) /* ")", state, ppid, pgrp */
        strsep(&rest, " ");
    return rest == NULL ? 0 : atoi(rest);
}

void session_kill(bool (*doomed)(pid_t session))
{
    DIR *proc = opendir("/proc");
    if (proc == NULL)
        return;
    for (struct dirent *entry = readdir(proc); entry != NULL; entry = readdir(proc)) {
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
            continue;
        /* 0: kernel threads, and processes of a session that this PID namespace does not see */
        pid_t pid = atoi(entry->d_name), session = session_of(entry->d_name);
        if (session > 1 && pid > 1 && doomed(session))
            kill(pid, SIGKILL);
    }
    closedir(proc);
}
