#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "records.h"
#include "tree.h"

static int tell(int directory, const char *name, const char *called, int flags)
{
    struct stat info;
    char target[PATH_MAX];
    if (fstatat(directory, name, &info, flags) != 0)
        return errno;
    ssize_t length = S_ISLNK(info.st_mode)
                         ? readlinkat(directory, name, target, sizeof target - 1)
                         : 0;
    target[length > 0 ? length : 0] = 0;
    record_write_info(&info, called, target);
    return 0;
}

static int serve_stat(const char *path)
{
    return tell(AT_FDCWD, path, "", 0);
}

static int serve_lstat(const char *path)
{
    return tell(AT_FDCWD, path, "", AT_SYMLINK_NOFOLLOW);
}

static int serve_list(const char *path)
{
    DIR *directory = opendir(path);
    if (directory == NULL)
        return errno;
    int error = 0;
    struct dirent *it;
    while (error == 0 && (it = tree_next(directory, &error)) != NULL) {
        error = tell(dirfd(directory), it->d_name, it->d_name, AT_SYMLINK_NOFOLLOW);
        if (error == ENOENT) /* it was removed meanwhile */
            error = 0;
    }
    closedir(directory);
    return error;
}

static int serve_mkdir(const char *path)
{
    return mkdir(path, 0755) == 0 ? 0 : errno;
}

static int serve_mkdirs(const char *path)
{
    char copy[PATH_MAX];
    struct stat info;
    if (snprintf(copy, sizeof copy, "%s", path) >= (int)sizeof copy)
        return ENAMETOOLONG;
    for (char *at = copy + 1; copy[0] != 0 && *at != 0; at++) {
        if (*at != '/')
            continue;
        *at = 0;
        mkdir(copy, 0755); /* what is wrong shows in the next one */
        *at = '/';
    }
    if (mkdir(copy, 0755) == 0)
        return 0;
    int error = errno;
    return error == EEXIST && stat(copy, &info) == 0 && S_ISDIR(info.st_mode) ? 0 : error;
}

static int serve_read(const char *path)
{
    return tree_send(path, true);
}

static int serve_get(const char *path)
{
    return tree_send(path, false);
}

static int serve_put(const char *path)
{
    signal(SIGPIPE, SIG_IGN); /* or what has been made so far would stay */
    return tree_take(path);
}

static int serve_remove(const char *path)
{
    return tree_remove(path, false);
}

static int serve_rmtree(const char *path)
{
    return tree_remove(path, true);
}

static const struct operation {
    const char *word;
    int (*serve)(const char *path); /* 0 or an errno */
} operations[] = {
    {"read", serve_read},     {"get", serve_get},     {"put", serve_put},
    {"stat", serve_stat},     {"lstat", serve_lstat}, {"list", serve_list},
    {"mkdir", serve_mkdir},   {"mkdirs", serve_mkdirs}, {"remove", serve_remove},
    {"rmtree", serve_rmtree},
};

static int serve(char *const *words)
{
    if (words[1] == NULL || words[2] != NULL)
        return EPROTO;
    snprintf(tree_where, sizeof tree_where, "%s", words[1]);
    for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++)
        if (strcmp(words[0], operations[i].word) == 0)
            return operations[i].serve(words[1]);
    return EPROTO;
}

_Noreturn void files_serve(char *const *words)
{
    prctl(PR_SET_NAME, "microvm-files");
    umask(022);
    int error = serve(words);
    if (error == 0)
        record_write(RECORD_DONE, 0);
    else
        record_write_error(error, tree_where);
    record_flush();
    _exit(error == 0 ? 0 : 1);
}
