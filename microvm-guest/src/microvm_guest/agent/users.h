/* Users and groups as /etc/passwd and /etc/group have them: no NSS in a static program. */

#ifndef MICROVM_USERS_H
#define MICROVM_USERS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define USER_MAX_GROUPS 256

struct user {
    uid_t uid;
    gid_t gid;
    char name[64]; /* empty for a number that nobody has */
    char home[256];
    size_t group_count;
    gid_t groups[USER_MAX_GROUPS]; /* supplementary ones, the primary one first */
};

/* `spec` is a name or a number, and after a colon perhaps a group's name or number in place of
 * the user's own groups. A number that /etc/passwd does not list is taken as it is, its group
 * the same number and its home "/". False when there is no such user or group. */
bool user_find(const char *spec, struct user *user);

#endif
