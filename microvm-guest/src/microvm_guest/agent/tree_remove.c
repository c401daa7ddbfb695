#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "tree.h"

static int empty(int directory, const char *name)
{
    int fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *open_directory = fd < 0 ? NULL : fdopendir(fd);
    if (open_directory == NULL)
        return errno;
    int error = 0;
    struct dirent *it;
    while (error == 0 && (it = tree_next(open_directory, &error)) != NULL)
        error = tree_remove_at(fd, it->d_name);
    closedir(open_directory);
    return error;
}

int tree_remove_at(int directory, const char *name)
{
    if (unlinkat(directory, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR)
        return errno;
    int error = empty(directory, name);
    if (error == 0 && unlinkat(directory, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        error = errno;
    return error;
}

static int removed(int result)
{
    return result == 0 ? 0 : errno;
}

int tree_remove(const char *path, bool whole)
{
    snprintf(tree_where, sizeof tree_where, "%s", path);
    int error = removed(unlinkat(AT_FDCWD, path, 0));
    if (error != EISDIR)
        return error;
    error = removed(unlinkat(AT_FDCWD, path, AT_REMOVEDIR));
    if (!whole || (error != ENOTEMPTY && error != EEXIST))
        return error;
    error = empty(AT_FDCWD, path);
    return error != 0 ? error : removed(unlinkat(AT_FDCWD, path, AT_REMOVEDIR));
}
