#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "bytes.h"
#include "records.h"
#include "tree.h"

#define NS_PER_S 1000000000ull
#define TEMPORARY_BYTES 32

/* statfs(2), f_type: where files are the kernel's own doing, and no others can be made */
static const unsigned long kernels_own[] = {0x9fa0 /* proc */, 0x62656572 /* sysfs */,
                                            0x63677270 /* cgroup2 */, 0x64626720 /* debugfs */,
                                            0x74726163 /* tracefs */};

/* What is open: directories from the outermost inwards, and perhaps a file in the last. */
static struct level {
    int fd;
    uint32_t mode;
    uint64_t mtime_ns;
} levels[WIRE_MAX_DEPTH + 1];
static int depth;
static bool in_file;

static bool is_kernels_own(int directory)
{
    struct statfs info;
    if (fstatfs(directory, &info) != 0)
        return false;
    for (size_t i = 0; i < sizeof kernels_own / sizeof kernels_own[0]; i++)
        if ((unsigned long)info.f_type == kernels_own[i])
            return true;
    return false;
}

static struct timespec time_of(uint64_t ns)
{
    if (ns > INT64_MAX) /* before 1970 */
        return (struct timespec){.tv_nsec = UTIME_OMIT};
    return (struct timespec){.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
}

static int write_all(int fd, const uint8_t *data, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, data, length);
        if (written < 0 && errno != EINTR)
            return errno;
        data += written > 0 ? written : 0;
        length -= written > 0 ? (size_t)written : 0;
    }
    return 0;
}

/* --- one record -------------------------------------------------------------------------- */

/* One component of a path, and not one that leads anywhere else. */
static bool take_name(char name[WIRE_MAX_NAME + 1], const uint8_t *from, size_t length)
{
    if (length == 0 || length > WIRE_MAX_NAME || memchr(from, 0, length) != NULL ||
        memchr(from, '/', length) != NULL)
        return false;
    memcpy(name, from, length);
    name[length] = 0;
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static int begin(int directory, const char *name, const struct record *record, bool in_place)
{
    bool file = record->kind == RECORD_FILE;
    if (depth > WIRE_MAX_DEPTH)
        return ELOOP;
    if (!file && mkdirat(directory, name, 0700) != 0)
        return errno;
    int flags = file ? O_WRONLY | (in_place ? O_TRUNC : O_CREAT | O_EXCL | O_NOFOLLOW)
                     : O_RDONLY | O_DIRECTORY | O_NOFOLLOW;
    int fd = openat(directory, name, flags | O_CLOEXEC | O_NOCTTY, 0600);
    if (fd < 0)
        return errno;
    levels[depth++] = (struct level){
        .fd = fd, .mode = get_u32(record->payload) & 07777, .mtime_ns = get_u64(record->payload + 4)};
    in_file = file;
    return 0;
}

static int end(bool in_place)
{
    struct level *level = &levels[--depth];
    struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, time_of(level->mtime_ns)};
    int error = 0;
    in_file = false;
    if (!in_place) {
        fchmod(level->fd, level->mode);
        if (level->mtime_ns != 0)
            futimens(level->fd, times);
    }
    if (close(level->fd) != 0)
        error = errno;
    return error;
}

static int make_link(int directory, const char *name, const struct record *record)
{
    char target[PATH_MAX];
    size_t offset = 14u + get_u16(record->payload + 12);
    size_t length = record->length - offset;
    struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, time_of(get_u64(record->payload + 4))};
    if (length == 0 || length >= sizeof target)
        return EINVAL;
    memcpy(target, record->payload + offset, length);
    target[length] = 0;
    if (strlen(target) != length)
        return EINVAL;
    if (symlinkat(target, directory, name) != 0)
        return errno;
    utimensat(directory, name, times, AT_SYMLINK_NOFOLLOW);
    return 0;
}

/* The bytes of an entry's name; false if the entry is cut short. */
static bool name_of(const struct record *record, const uint8_t **name, size_t *length)
{
    bool link = record->kind == RECORD_SYMLINK;
    size_t head = link ? 14 : 12;
    if (record->length < head)
        return false;
    *name = record->payload + head;
    *length = link ? get_u16(record->payload + 12) : record->length - head;
    return *length <= record->length - head;
}

static bool is_entry(const struct record *record)
{
    return record->kind == RECORD_FILE || record->kind == RECORD_DIRECTORY ||
           record->kind == RECORD_SYMLINK;
}

static int take_within(const struct record *record, bool in_place)
{
    char name[WIRE_MAX_NAME + 1];
    const uint8_t *from;
    size_t length;
    int inmost = levels[depth - 1].fd;
    if (record->kind == RECORD_END && record->length == 0)
        return end(in_place);
    if (record->kind == RECORD_DATA && in_file)
        return write_all(inmost, record->payload, record->length);
    if (!is_entry(record) || in_file || !name_of(record, &from, &length) ||
        !take_name(name, from, length))
        return EPROTO;
    snprintf(tree_where, sizeof tree_where, "%s", name);
    return record->kind == RECORD_SYMLINK ? make_link(inmost, name, record)
                                          : begin(inmost, name, record, false);
}

/* --- the whole --------------------------------------------------------------------------- */

/* All records of one tree, its root made as `name`. */
static int take_as(int directory, const char *name, bool in_place, const struct record *first)
{
    struct record record;
    int error = first->kind == RECORD_SYMLINK ? make_link(directory, name, first)
                                              : begin(directory, name, first, in_place);
    while (error == 0 && depth > 0)
        error = record_read(&record) ? take_within(&record, in_place) : EPIPE;
    if (error == 0 && !record_read(&record))
        error = EPIPE;
    if (error == 0 && record.kind != RECORD_DONE)
        error = EPROTO;
    return error;
}

/* Its directory, and its name there within `copy`. */
static int split(const char *path, char copy[PATH_MAX], const char **name)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    if (length == 0 || length >= PATH_MAX) {
        errno = length == 0 ? ENOENT : ENAMETOOLONG;
        return -1;
    }
    memcpy(copy, path, length);
    copy[length] = 0;
    char *slash = strrchr(copy, '/');
    *name = slash == NULL ? copy : slash + 1;
    if (**name == 0 || strcmp(*name, ".") == 0 || strcmp(*name, "..") == 0) {
        errno = EISDIR;
        return -1;
    }
    int parent = slash == copy ? open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (slash == NULL)
        parent = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    else if (slash > copy) {
        *slash = 0;
        parent = open(copy, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    return parent;
}

static void temporary_name(char name[TEMPORARY_BYTES])
{
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random)
        random = (uint64_t)getpid(); /* the guest has no entropy yet: EEXIST would say so */
    snprintf(name, TEMPORARY_BYTES, ".microvm-%016llx", (unsigned long long)random);
}

int tree_take(const char *path)
{
    char copy[PATH_MAX], temporary[TEMPORARY_BYTES];
    const char *name;
    struct record first;
    const uint8_t *from;
    size_t length;
    snprintf(tree_where, sizeof tree_where, "%s", path);
    umask(0);
    int parent = split(path, copy, &name);
    if (parent < 0)
        return errno;
    if (!record_read(&first))
        return EPIPE;
    if (!is_entry(&first) || !name_of(&first, &from, &length))
        return EPROTO;
    if (first.kind == RECORD_FILE && is_kernels_own(parent))
        return take_as(parent, name, true, &first);
    temporary_name(temporary);
    int error = take_as(parent, temporary, false, &first);
    if (error == 0) {
        snprintf(tree_where, sizeof tree_where, "%s", path);
        if (renameat(parent, temporary, parent, name) == 0)
            return 0;
        error = errno;
    }
    if (error != EEXIST || depth > 0)
        tree_remove_at(parent, temporary);
    return error;
}
