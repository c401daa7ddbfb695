#include "system.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "root.h"

#define HOSTNAME "microvm"
#define NOFILE_WANTED 65536

struct mount_entry {
    const char *type, *at;
    unsigned long flags;
    const char *options;
};

static const struct mount_entry mounts[] = {
    {"proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"devtmpfs", "/dev", MS_NOSUID, "mode=0755"},
    {"devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
    {"tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755"},
    {"tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777"},
    {"cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
};

/* What devtmpfs lacks and shells and programs expect. */
static const char *const links[][2] = {
    {"/proc/self/fd", "/dev/fd"},
    {"/proc/self/fd/0", "/dev/stdin"},
    {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"},
};

#define LENGTH(array) (sizeof(array) / sizeof(array)[0])

static struct rlimit original_nofile;
static bool nofile_changed;

void system_log(const char *what, const char *which)
{
    dprintf(STDERR_FILENO, "microvm-agent: %s %s: %s\n", what, which, strerror(errno));
}

void system_open_stdio(void)
{
    int fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = dup(fd);
    if (fd > STDERR_FILENO)
        close(fd);
}

static void mount_all(void)
{
    for (const struct mount_entry *it = mounts; it < mounts + LENGTH(mounts); it++) {
        mkdir(it->at, 0755);
        if (mount(it->type, it->at, it->type, it->flags, it->options) == 0)
            continue;
        /* EBUSY: mounted already. ENODEV: not in this kernel; ENOENT: no cgroups in sysfs */
        if (errno != EBUSY && errno != ENODEV && errno != ENOENT)
            system_log("can't mount", it->at);
    }
    for (size_t i = 0; i < LENGTH(links); i++)
        if (symlink(links[i][0], links[i][1]) != 0 && errno != EEXIST)
            system_log("can't link", links[i][1]);
}

static void unmount_all(void)
{
    for (const struct mount_entry *it = mounts + LENGTH(mounts); it-- > mounts;)
        umount2(it->at, MNT_DETACH);
}

/* An initramfs without /dev/console starts process 1 with no descriptors at all. */
static void take_console(void)
{
    int console = open("/dev/console", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (console < 0)
        return;
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        dup2(console, fd);
    if (console > STDERR_FILENO)
        close(console);
}

static void bring_up_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return; /* a kernel without IP */
    if (ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
        request.ifr_flags |= IFF_UP;
        ioctl(fd, SIOCSIFFLAGS, &request);
    }
    close(fd);
}

static void enter_root(void)
{
    char device[ROOT_DEVICE_BYTES];
    root_look();
    if (!system_word("root", device, sizeof device))
        return;
    root_mount(device);
    unmount_all();
    root_enter();
    mount_all();
}

void system_set_up(void)
{
    umask(022);
    mount_all();
    take_console();
    enter_root();
    sethostname(HOSTNAME, strlen(HOSTNAME));
    bring_up_loopback();
    reboot(RB_DISABLE_CAD); /* ctrl-alt-del is SIGINT to process 1, not a reset */
    /* the kernel's HOME=/ and TERM=linux, and whatever words of its command line it did not know */
    clearenv();
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/root", 1);
    if (chdir("/") != 0)
        system_log("can't enter", "/");
}

void system_raise_limits(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &original_nofile) != 0)
        return;
    limit = original_nofile;
    if (limit.rlim_max < NOFILE_WANTED && geteuid() == 0)
        limit.rlim_max = NOFILE_WANTED;
    if (limit.rlim_cur < NOFILE_WANTED)
        limit.rlim_cur = limit.rlim_max < NOFILE_WANTED ? limit.rlim_max : NOFILE_WANTED;
    nofile_changed = setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

void system_restore_limits(void)
{
    if (nofile_changed)
        setrlimit(RLIMIT_NOFILE, &original_nofile);
}

bool system_word(const char *name, char *value, size_t size)
{
    char cmdline[4096], word[64];
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, cmdline, sizeof cmdline - 1);
    if (fd >= 0)
        close(fd);
    if (length < 0)
        return false;
    cmdline[length] = 0;
    snprintf(word, sizeof word, "microvm.%s=", name);
    bool found = false;
    char *rest = cmdline;
    for (char *it = strsep(&rest, " \n"); it != NULL; it = strsep(&rest, " \n"))
        if (strncmp(it, word, strlen(word)) == 0)
            found = snprintf(value, size, "%s", it + strlen(word)) < (int)size;
    return found;
}

unsigned system_option(const char *name, unsigned fallback)
{
    char value[32];
    return system_word(name, value, sizeof value) ? (unsigned)strtoul(value, NULL, 10) : fallback;
}
