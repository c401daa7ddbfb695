/* Trees of files: out of this machine as records, and into it.
 *
 * A tree travels as a walk: DIRECTORY enters, END leaves, and each name is one component. So
 * neither side ever joins or parses a path, and there is nothing to lead out of the tree.
 *
 * All of it runs in a child that serves one FILES command. Each returns 0, or an errno with
 * `tree_where` saying at what. */

#ifndef MICROVM_TREE_H
#define MICROVM_TREE_H

#include <dirent.h>
#include <limits.h>
#include <stdbool.h>

extern char tree_where[PATH_MAX];

/* Say the file, or the directory with all that is in it. A symlink in it stays one; `path` itself
 * is followed. What is no file, directory or symlink is told as SKIPPED.
 * `only_file`: a directory is EISDIR, and whatever can be read is a file. */
int tree_send(const char *path, bool only_file);

/* Take one as `path`. It appears there whole, or not at all: what there was is replaced if it is
 * no directory, or an empty one. EPIPE: the host went before its end. */
int tree_take(const char *path);

/* Remove what is at `path`, a directory only if it is empty, or `whole`. */
int tree_remove(const char *path, bool whole);

/* The next name of a directory, but "." and "..". NULL at its end, and with an errno in `error`,
 * which else is left alone. */
struct dirent *tree_next(DIR *directory, int *error);

/* Remove `name` in a directory, and what is in it. */
int tree_remove_at(int directory, const char *name);

#endif
