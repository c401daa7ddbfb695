#include "users.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_BYTES 4096 /* a longer line of /etc/passwd or /etc/group is passed over */
#define NO_ID UINT32_MAX /* setresuid(2) reads it as "leave as it is": never an id */

static bool parse_id(const char *text, uint32_t *id)
{
    char *end;
    if (text[0] < '0' || text[0] > '9')
        return false;
    unsigned long value = strtoul(text, &end, 10);
    *id = (uint32_t)value;
    return *end == 0 && value < NO_ID;
}

/* The next line, cut at its colons into `count` fields; short and long lines are passed over. */
static bool next_entry(FILE *file, char *line, char **fields, int count)
{
    while (fgets(line, LINE_BYTES, file) != NULL) {
        size_t length = strcspn(line, "\n");
        if (line[length] == 0 && length == LINE_BYTES - 1) {
            for (int c = fgetc(file); c != '\n' && c != EOF; c = fgetc(file))
                ;
            continue;
        }
        line[length] = 0;
        int found = 0;
        char *rest = line;
        while (found < count && rest != NULL)
            fields[found++] = strsep(&rest, ":");
        if (found == count)
            return true;
    }
    return false;
}

static void copy(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from);
}

/* name:password:uid:gid:comment:home:shell */
static bool find_account(const char *who, struct user *user)
{
    uint32_t wanted = NO_ID;
    bool numeric = parse_id(who, &wanted);
    char line[LINE_BYTES], *fields[6];
    bool found = false;
    FILE *file = fopen("/etc/passwd", "re");
    while (!found && file != NULL && next_entry(file, line, fields, 6)) {
        uint32_t uid, gid;
        if (!parse_id(fields[2], &uid) || !parse_id(fields[3], &gid))
            continue;
        if (strcmp(fields[0], who) != 0 && !(numeric && uid == wanted))
            continue;
        user->uid = uid;
        user->gid = gid;
        copy(user->name, sizeof user->name, fields[0]);
        copy(user->home, sizeof user->home, fields[5][0] == 0 ? "/" : fields[5]);
        found = true;
    }
    if (file != NULL)
        fclose(file);
    if (!found && numeric) {
        user->uid = user->gid = wanted;
        copy(user->home, sizeof user->home, "/");
        found = true;
    }
    return found;
}

static bool lists(char *members, const char *name)
{
    for (char *member = strsep(&members, ","); member != NULL; member = strsep(&members, ","))
        if (strcmp(member, name) == 0)
            return true;
    return false;
}

/* name:password:gid:members. With `group`, that one alone; else those that list the user. */
static bool find_groups(const char *group, struct user *user)
{
    uint32_t wanted = NO_ID;
    bool found = group != NULL && parse_id(group, &wanted);
    if (found)
        user->gid = wanted;
    char line[LINE_BYTES], *fields[4];
    FILE *file = found ? NULL : fopen("/etc/group", "re");
    user->group_count = 1;
    while (file != NULL && next_entry(file, line, fields, 4)) {
        uint32_t gid;
        if (!parse_id(fields[2], &gid))
            continue;
        if (group != NULL && strcmp(fields[0], group) == 0) {
            user->gid = gid;
            found = true;
        } else if (group == NULL && user->name[0] != 0 && lists(fields[3], user->name) &&
                   user->group_count < USER_MAX_GROUPS) {
            user->groups[user->group_count++] = gid;
        }
    }
    if (file != NULL)
        fclose(file);
    user->groups[0] = user->gid;
    return group == NULL || found;
}

bool user_find(const char *spec, struct user *user)
{
    char who[128];
    memset(user, 0, sizeof *user);
    if (strlen(spec) >= sizeof who)
        return false;
    copy(who, sizeof who, spec);
    char *group = strchr(who, ':');
    if (group != NULL)
        *group++ = 0;
    return find_account(who, user) && find_groups(group, user);
}
