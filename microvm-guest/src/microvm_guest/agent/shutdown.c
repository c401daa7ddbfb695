#include "shutdown.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "command.h"
#include "connection.h"
#include "jobs.h"
#include "root.h"
#include "system.h"

#define NS_PER_MS 1000000ull
#define TERM_GRACE_MS 1000
#define KILL_GRACE_MS 500
#define GOODBYE_MS 200 /* for the host to read the last frames and hang up */

enum stage { RUNNING, ASKED, TERMINATING, KILLING, LEAVING };

static enum stage stage;
static uint64_t deadline;
static bool process_1, power_off;

void shutdown_owns(bool owns)
{
    process_1 = owns;
}

void shutdown_begin(bool off)
{
    if (stage != RUNNING)
        return;
    power_off = off;
    stage = ASKED;
    deadline = monotonic_ns(); /* the frames of this batch, and the answer to them, come first */
    commands_refuse();
}

uint64_t shutdown_deadline(void)
{
    return deadline;
}

static void enter(enum stage next, unsigned ms)
{
    stage = next;
    deadline = monotonic_ns() + ms * NS_PER_MS;
}

/* Process 1 has every process as its child in the end; another one has its commands. */
static bool anybody_left(void)
{
    siginfo_t info;
    if (!process_1)
        return commands_count() + jobs_count() > 0;
    return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 || errno != ECHILD;
}

static void tell_all(int signal)
{
    if (process_1)
        kill(-1, signal);
    else
        commands_signal(signal);
}

static _Noreturn void end(void)
{
    sync();
    if (!process_1)
        exit(EXIT_SUCCESS);
    root_settle();
    reboot(power_off ? RB_POWER_OFF : RB_AUTOBOOT);
    system_log("can't", power_off ? "power off" : "reset");
    reboot(power_off ? RB_AUTOBOOT : RB_POWER_OFF);
    for (;;)
        pause(); /* process 1 must not return */
}

void shutdown_advance(void)
{
    bool late = stage != RUNNING && monotonic_ns() >= deadline;
    if (stage == ASKED) {
        tell_all(SIGTERM);
        enter(TERMINATING, TERM_GRACE_MS);
        late = false;
    }
    if (stage == TERMINATING && late && anybody_left()) {
        tell_all(SIGKILL);
        enter(KILLING, KILL_GRACE_MS);
        late = false;
    }
    if ((stage == TERMINATING || stage == KILLING) && (late || !anybody_left())) {
        connections_finish();
        enter(LEAVING, GOODBYE_MS);
        late = false;
        connections_flush();
    }
    if (stage == LEAVING && (late || connections_count() == 0))
        end();
}
