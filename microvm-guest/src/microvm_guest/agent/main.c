/* The guest agent: process 1 of a microvm guest, or a service of a larger one.
 *
 *   microvm-agent                      serve AF_VSOCK and announce it to the host
 *   microvm-agent --connected-fd N     serve one connection, then end
 *   microvm-agent --listen-fd N        serve those that come to a listening socket
 *   microvm-agent --forward-fd N       serve forwards that come to a listening socket
 *   microvm-agent --socks5 ADDRESS PORT VSOCK-PORT USER
 *                                      be a SOCKS5 server, and nothing else
 *   microvm-agent --version
 *
 * Those with a descriptor run beside the host's own programs: the clock is left alone. */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "command.h"
#include "connection.h"
#include "forward.h"
#include "loop.h"
#include "notice.h"
#include "network.h"
#include "shutdown.h"
#include "socks5.h"
#include "system.h"
#include "vsock.h"
#include "wire.h"

static struct watch signals;

static void reap(void)
{
    int status;
    for (pid_t pid = waitpid(-1, &status, WNOHANG); pid > 0; pid = waitpid(-1, &status, WNOHANG))
        if (!notice_reaped(pid))
            command_reaped(pid, status);
}

static void signals_ready(struct watch *watch, uint32_t events)
{
    struct signalfd_siginfo info;
    (void)events;
    while (read(watch->fd, &info, sizeof info) == (ssize_t)sizeof info) {
        switch (info.ssi_signo) {
        case SIGCHLD:
            reap();
            break;
        case SIGINT: /* to process 1: ctrl-alt-del */
        case SIGTERM: /* to process 1: busybox reboot(8) */
            shutdown_begin(false);
            break;
        case SIGUSR1: /* halt(8) */
        case SIGUSR2: /* poweroff(8) */
            shutdown_begin(true);
            break;
        }
    }
}

/* A blocked signal is fetched from the descriptor; SIGPIPE is blocked so that it is only errno.
 * Children start with nothing blocked and, since nothing here installs a handler, all defaults. */
static void take_signals(void)
{
    static const int taken[] = {SIGCHLD, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    sigset_t set;
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++)
        sigaddset(&set, taken[i]);
    watch_open(&signals, signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), signals_ready);
    sigaddset(&set, SIGPIPE);
    sigprocmask(SIG_BLOCK, &set, NULL);
    watch_for(&signals, EPOLLIN);
}

static void serve_vsock(void)
{
    int listening = vsock_listen(system_option("guest_port", WIRE_GUEST_PORT), WIRE_MAX_CONNECTIONS);
    if (listening < 0)
        system_log("can't listen on", "vsock");
    else
        connections_listen(listening, true);
    forwards_serve_vsock();
    int dialled = vsock_dial(system_option("host_port", WIRE_HOST_PORT));
    if (dialled < 0)
        system_log("can't reach", "the host");
    else
        connection_open(dialled, true);
}

static int number(const char *text)
{
    char *end;
    long value = strtol(text, &end, 10);
    return *text != 0 && *end == 0 && value > STDERR_FILENO && value < 1 << 20 ? (int)value : -1;
}

static _Noreturn void usage(void)
{
    fputs("usage: microvm-agent [--connected-fd N | --listen-fd N | --forward-fd N | --version]\n", stderr);
    exit(2);
}

int main(int argc, char **argv)
{
    bool process_1 = getpid() == 1;
    int connected = -1, listening = -1, forwarding = -1;
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("microvm-agent %s, protocol %d.%d\n", MICROVM_AGENT_BUILD, WIRE_MAJOR, WIRE_MINOR);
        return 0;
    }
    if (argc == 6 && !process_1 && strcmp(argv[1], "--socks5") == 0)
        socks5_main(argv[2], argv[3], argv[4], argv[5]);
    if (argc == 3 && strcmp(argv[1], "--connected-fd") == 0)
        connected = number(argv[2]);
    else if (argc == 3 && strcmp(argv[1], "--listen-fd") == 0)
        listening = number(argv[2]);
    else if (argc == 3 && strcmp(argv[1], "--forward-fd") == 0)
        forwarding = number(argv[2]);
    bool on_vsock = connected < 0 && listening < 0 && forwarding < 0;
    if (on_vsock && argc > 1 && !process_1) /* the kernel gives process 1 words of its own */
        usage();

    if (process_1)
        system_set_up();
    system_open_stdio();
    system_raise_limits();
    if (process_1)
        network_begin();
    shutdown_owns(process_1);
    clock_own(on_vsock);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    loop_open();
    take_signals();
    if (on_vsock)
        serve_vsock();
    else if (connected >= 0)
        connection_open(connected, false);
    else if (listening >= 0)
        connections_listen(listening, false);
    else
        forwards_serve(forwarding);
    for (;;) {
        loop_once(shutdown_deadline());
        connections_flush();
        shutdown_advance();
        if (connected >= 0 && connections_count() == 0)
            shutdown_begin(false);
    }
}
