#include "status.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "command.h"
#include "connection.h"
#include "jobs.h"
#include "notice.h"
#include "wire.h"

void status_put_identity(struct field_writer *writer)
{
    struct utsname name;
    field_put_text(writer, FIELD_BUILD, MICROVM_AGENT_BUILD);
    if (uname(&name) == 0)
        field_put_text(writer, FIELD_KERNEL, name.release);
}

/* The kernel's own estimate of what programs can still have; free memory without one. */
static uint64_t available_kib(uint64_t free_kib)
{
    static const char label[] = "MemAvailable:";
    char text[512]; /* it is the third line */
    int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[length > 0 ? length : 0] = 0;
    const char *found = strstr(text, label);
    return found == NULL ? free_kib : strtoull(found + sizeof label - 1, NULL, 10);
}

/* sysinfo(2): a load is a fixed-point number, 1 << SI_LOAD_SHIFT for one process. */
static uint32_t hundredths(unsigned long load)
{
    return (uint32_t)((load * 100) >> SI_LOAD_SHIFT);
}

void status_put_system(struct field_writer *writer)
{
    struct sysinfo info;
    if (sysinfo(&info) == 0) {
        uint64_t unit = info.mem_unit;
        field_put_u64(writer, FIELD_UPTIME_MS, (uint64_t)info.uptime * 1000);
        field_put_u64(writer, FIELD_MEM_TOTAL_KIB, info.totalram * unit / 1024);
        field_put_u64(writer, FIELD_MEM_AVAILABLE_KIB, available_kib(info.freeram * unit / 1024));
        field_put_u32(writer, FIELD_LOAD_1, hundredths(info.loads[0]));
        field_put_u32(writer, FIELD_LOAD_5, hundredths(info.loads[1]));
        field_put_u32(writer, FIELD_LOAD_15, hundredths(info.loads[2]));
    }
    field_put_u32(writer, FIELD_JOBS, jobs_count());
    field_put_u32(writer, FIELD_PAUSES, notices_of_pauses());
    field_put_u32(writer, FIELD_COMMANDS, commands_count());
    field_put_u32(writer, FIELD_CONNECTIONS, connections_count());
    field_put_u32(writer, FIELD_PID, (uint32_t)getpid());
}
