#include "root.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <mntent.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* Below "/" of the initramfs, and gone from sight with it. */
#define DISK "/.disk"
#define SCRATCH "/.scratch"
#define LAYERED "/.layered"

#define WAIT_STEPS 200 /* for a disk whose driver is still at it: two seconds */
#define WAIT_STEP_NS 10000000
#define MAX_TYPES_TEXT 256

#define RAMFS 0x858458f6 /* statfs(2), f_type */
#define TMPFS 0x01021994

static bool in_initramfs;
static const char *new_root;

void root_look(void)
{
    struct statfs info;
    in_initramfs =
        statfs("/", &info) == 0 && (info.f_type == RAMFS || info.f_type == TMPFS);
}

static _Noreturn void give_up(const char *device, const char *why)
{
    dprintf(STDERR_FILENO, "microvm-agent: can't start from the root disk %s: %s\n", device, why);
    tcdrain(STDERR_FILENO); /* or the serial port's last bytes go with the machine */
    reboot(RB_AUTOBOOT);
    _exit(1);
}

static bool appeared(const char *device)
{
    static const struct timespec step = {.tv_nsec = WAIT_STEP_NS};
    for (int i = 0; i < WAIT_STEPS; i++) {
        if (access(device, F_OK) == 0)
            return true;
        nanosleep(&step, NULL);
    }
    return false;
}

/* The types that the kernel lists for block devices, in its order, as it does for its own root=.
 * Returns 0, or the errno that says most: what is not of a type is EINVAL to its driver. */
static int mount_as_any(const char *device, unsigned long flags, char *tried)
{
    char line[128];
    int problem = EINVAL;
    FILE *types = fopen("/proc/filesystems", "re");
    tried[0] = 0;
    if (types == NULL)
        return errno;
    while (problem != 0 && fgets(line, sizeof line, types) != NULL) {
        if (line[0] != '\t') /* nodev */
            continue;
        const char *type = line + 1;
        line[strcspn(line, "\n")] = 0;
        size_t used = strlen(tried);
        snprintf(tried + used, MAX_TYPES_TEXT - used, "%s%s", used == 0 ? "" : ", ", type);
        if (mount(device, DISK, type, flags | MS_SILENT, NULL) == 0)
            problem = 0;
        else if (errno != EINVAL)
            problem = errno;
        if (problem == EACCES || problem == EROFS)
            break;
    }
    fclose(types);
    return problem;
}

static void mount_disk(const char *device)
{
    char why[MAX_TYPES_TEXT + 128], tried[MAX_TYPES_TEXT];
    if (!appeared(device))
        give_up(device, "there is no such disk in this machine");
    mkdir(DISK, 0755);
    int problem = mount_as_any(device, 0, tried);
    if (problem == EACCES || problem == EROFS)
        problem = mount_as_any(device, MS_RDONLY, tried);
    if (problem == 0)
        return;
    if (problem == EINVAL)
        snprintf(why, sizeof why, "no file system this kernel knows is on it (tried %s)", tried);
    else if (problem == EROFS)
        snprintf(why, sizeof why,
                 "it was not unmounted cleanly and has to be repaired, but can only be read");
    else if (problem == EUCLEAN) /* which musl has no word for */
        snprintf(why, sizeof why, "its file system is damaged");
    else
        snprintf(why, sizeof why, "%s", strerror(problem));
    give_up(device, why);
}

/* Programs expect to write to /etc and /var. What they write lives in memory, as with the
 * initramfs, and at most half of it. */
static bool add_layer(void)
{
    static const char layers[] =
        "lowerdir=" DISK ",upperdir=" SCRATCH "/upper,workdir=" SCRATCH "/work";
    mkdir(SCRATCH, 0755);
    mkdir(LAYERED, 0755);
    return mount("tmpfs", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755") == 0 &&
           mkdir(SCRATCH "/upper", 0755) == 0 && mkdir(SCRATCH "/work", 0755) == 0 &&
           mount("overlay", LAYERED, "overlay", 0, layers) == 0;
}

void root_mount(const char *device)
{
    struct statvfs info;
    if (!in_initramfs)
        give_up(device, "the agent is not in the initramfs");
    mount_disk(device);
    new_root = DISK;
    if (statvfs(DISK, &info) != 0 || !(info.f_flag & ST_RDONLY))
        return;
    if (add_layer())
        new_root = LAYERED;
    else
        dprintf(STDERR_FILENO, "microvm-agent: the root disk can only be read: no layer: %s\n",
                strerror(errno));
}

static int forget(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info;
    (void)kind;
    if (where->level > 0)
        remove(path); /* what something is mounted on stays */
    return 0;
}

void root_enter(void)
{
    /* this program's own pages stay until it ends; busybox and the rest are memory from now on */
    nftw("/", forget, 16, FTW_PHYS | FTW_MOUNT | FTW_DEPTH);
    if (chdir(new_root) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0)
        give_up(new_root, strerror(errno));
}

void root_settle(void)
{
    FILE *mounts = in_initramfs ? setmntent("/proc/self/mounts", "re") : NULL;
    if (mounts == NULL)
        return;
    for (struct mntent *it = getmntent(mounts); it != NULL; it = getmntent(mounts))
        if (strncmp(it->mnt_fsname, "/dev/", 5) == 0)
            mount(NULL, it->mnt_dir, NULL, MS_REMOUNT | MS_RDONLY, NULL);
    endmntent(mounts);
}
