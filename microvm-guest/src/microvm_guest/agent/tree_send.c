#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "records.h"
#include "tree.h"

#define OPEN_FLAGS (O_RDONLY | O_NOCTTY | O_CLOEXEC)

char tree_where[PATH_MAX];

struct dirent *tree_next(DIR *directory, int *error)
{
    for (;;) {
        errno = 0; /* the end and an error look alike */
        struct dirent *it = readdir(directory);
        if (it == NULL && errno != 0)
            *error = errno;
        if (it == NULL || (strcmp(it->d_name, ".") != 0 && strcmp(it->d_name, "..") != 0))
            return it;
    }
}

/* Names of what is being sent, for errors. A path too long to be shown is cut. */
static size_t enter(const char *name)
{
    size_t length = strlen(tree_where);
    snprintf(tree_where + length, sizeof tree_where - length, "/%s", name);
    return length;
}

static int send_content(int fd, const struct stat *info, const char *name)
{
    record_write_entry(RECORD_FILE, info, name, NULL);
    for (;;) {
        uint8_t *room = record_room();
        ssize_t got = read(fd, room, WIRE_MAX_RECORD);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno;
        if (got == 0)
            break;
        record_write(RECORD_DATA, (size_t)got);
    }
    record_write(RECORD_END, 0);
    return 0;
}

static int send_link(int directory, const struct stat *info, const char *name)
{
    char target[PATH_MAX];
    ssize_t length = readlinkat(directory, name, target, sizeof target - 1);
    if (length < 0)
        return errno;
    target[length] = 0;
    record_write_entry(RECORD_SYMLINK, info, name, target);
    return 0;
}

static int send_directory(int fd, const struct stat *info, const char *name, int depth);

static int send_entry(int directory, const char *name, int depth)
{
    struct stat info;
    if (fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) != 0)
        return errno;
    if (S_ISLNK(info.st_mode))
        return send_link(directory, &info, name);
    if (!S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) {
        memcpy(record_room(), name, strlen(name));
        record_write(RECORD_SKIPPED, strlen(name));
        return 0;
    }
    /* it may be another one by now, even a device: not to be waited for */
    int fd = openat(directory, name, OPEN_FLAGS | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &info) != 0)
        return errno;
    int error = S_ISDIR(info.st_mode)   ? send_directory(fd, &info, name, depth)
                : S_ISREG(info.st_mode) ? send_content(fd, &info, name)
                                        : EBUSY;
    close(fd);
    return error;
}

static int send_directory(int fd, const struct stat *info, const char *name, int depth)
{
    if (depth >= WIRE_MAX_DEPTH)
        return ELOOP;
    DIR *directory = fdopendir(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (directory == NULL)
        return errno;
    record_write_entry(RECORD_DIRECTORY, info, name, NULL);
    int error = 0;
    struct dirent *it;
    while (error == 0 && (it = tree_next(directory, &error)) != NULL) {
        size_t length = enter(it->d_name);
        error = send_entry(fd, it->d_name, depth + 1);
        if (error == ENOENT) /* it was removed meanwhile */
            error = 0;
        if (error == 0)
            tree_where[length] = 0;
    }
    closedir(directory);
    record_write(RECORD_END, 0);
    return error;
}

int tree_send(const char *path, bool only_file)
{
    struct stat info;
    snprintf(tree_where, sizeof tree_where, "%s", path);
    int fd = open(path, OPEN_FLAGS);
    if (fd < 0 || fstat(fd, &info) != 0)
        return errno;
    if (S_ISDIR(info.st_mode))
        return only_file ? EISDIR : send_directory(fd, &info, "", 0);
    if (!only_file && !S_ISREG(info.st_mode))
        return EINVAL;
    return send_content(fd, &info, "");
}
