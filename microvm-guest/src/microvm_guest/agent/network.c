#include "network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/if_ether.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "dhcp.h"
#include "system.h"

#define RESOLV_CONF "/etc/resolv.conf"
#define MAX_INTERFACES 16
#define MAX_WORD 256
#define COMMANDS_WAIT_MS 3000
#define FIRST_PAUSE_MS 40 /* the first message may be lost: the link is just coming up */
#define LONGEST_PAUSE_MS 60000
#define SHORTEST_HALF_MS 1000 /* of a lease: a server may give one for no time at all */
#define REQUESTS 4 /* unanswered, then the offer is forgotten */

enum phase { ABSENT, SELECTING, REQUESTING, BOUND, RENEWING };

struct interface {
    char name[IFNAMSIZ];
    enum phase phase;
    int fd, index;
    uint8_t mac[DHCP_MAC_BYTES];
    uint32_t xid;
    struct dhcp_lease lease;
    unsigned tries;
    int64_t pause_ms, next_ms, expires_ms; /* -1: never */
};

static int settled = -1; /* reads as ended once every interface has its address */
static int64_t deadline_ms;

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* --- what is found out, put into force ---------------------------------------------------- */

static struct sockaddr_in *inet(void *at, uint32_t address)
{
    struct sockaddr_in *inet = at;
    *inet = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = address};
    return inet;
}

static bool set_up(int control, struct interface *it)
{
    struct ifreq request = {0};
    memcpy(request.ifr_name, it->name, sizeof request.ifr_name);
    if (ioctl(control, SIOCGIFINDEX, &request) != 0)
        return false;
    it->index = request.ifr_ifindex;
    if (ioctl(control, SIOCGIFHWADDR, &request) != 0)
        return false;
    memcpy(it->mac, request.ifr_hwaddr.sa_data, DHCP_MAC_BYTES);
    if (ioctl(control, SIOCGIFFLAGS, &request) != 0)
        return false;
    request.ifr_flags |= IFF_UP;
    return ioctl(control, SIOCSIFFLAGS, &request) == 0;
}

static bool open_packets(struct interface *it)
{
    struct sockaddr_ll here = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP),
                               .sll_ifindex = it->index};
    it->fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return it->fd >= 0 && bind(it->fd, (struct sockaddr *)&here, sizeof here) == 0;
}

static void add_route(int control, struct interface *it, uint32_t to, uint32_t mask, uint32_t via,
                      int metric)
{
    struct rtentry route = {.rt_flags = RTF_UP, .rt_dev = it->name,
                            .rt_metric = (short)(metric + 1)};
    inet(&route.rt_dst, to);
    inet(&route.rt_genmask, mask);
    inet(&route.rt_gateway, via);
    if (via != 0)
        route.rt_flags |= RTF_GATEWAY;
    if (mask == ~0u)
        route.rt_flags |= RTF_HOST;
    if (ioctl(control, SIOCADDRT, &route) != 0 && errno != EEXIST)
        system_log("can't route by", it->name);
}

static void use_lease(int control, struct interface *it, int position)
{
    const struct dhcp_lease *lease = &it->lease;
    struct ifreq request = {0};
    memcpy(request.ifr_name, it->name, sizeof request.ifr_name);
    inet(&request.ifr_addr, lease->address);
    bool good = ioctl(control, SIOCSIFADDR, &request) == 0;
    if (lease->netmask != 0) {
        inet(&request.ifr_netmask, lease->netmask);
        good = good && ioctl(control, SIOCSIFNETMASK, &request) == 0;
    }
    if (!good)
        system_log("can't set the address of", it->name);
    if (lease->router == 0)
        return;
    if ((lease->router ^ lease->address) & lease->netmask)
        add_route(control, it, lease->router, ~0u, 0, 0); /* it is on the link all the same */
    add_route(control, it, 0, 0, lease->router, 100 * position);
}

/* The address is somebody else's from now on; with it goes every route by the interface. */
static void drop_lease(int control, struct interface *it)
{
    struct ifreq request = {0};
    memcpy(request.ifr_name, it->name, sizeof request.ifr_name);
    inet(&request.ifr_addr, 0);
    if (ioctl(control, SIOCSIFADDR, &request) != 0)
        system_log("can't take the address from", it->name);
}

static int open_resolv_conf(void)
{
    return open(RESOLV_CONF, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
}

/* On a disk it may be a link into /run, to the file of a resolver that does not run here. */
static void make_way(void)
{
    char target[PATH_MAX];
    int etc = open("/etc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ssize_t length = readlink(RESOLV_CONF, target, sizeof target - 1);
    target[length < 0 ? 0 : length] = 0;
    for (char *at = target + 1; length > 0 && (at = strchr(at, '/')) != NULL; at++) {
        *at = 0;
        mkdirat(etc, target, 0755);
        *at = '/';
    }
    if (etc >= 0)
        close(etc);
}

static void write_resolv_conf(const struct interface *interfaces, int count)
{
    static bool written;
    char text[MAX_INTERFACES * DHCP_MAX_DNS * 32], address[INET_ADDRSTRLEN];
    size_t used = 0;
    for (int i = 0; i < count; i++)
        for (int k = 0; k < DHCP_MAX_DNS; k++) {
            if (interfaces[i].phase < BOUND || interfaces[i].lease.dns[k] == 0)
                continue;
            inet_ntop(AF_INET, &interfaces[i].lease.dns[k], address, sizeof address);
            used += (size_t)snprintf(text + used, sizeof text - used, "nameserver %s\n", address);
        }
    if ((used == 0 && !written) || !system_option("dns", 1))
        return;
    written = true;
    int fd = open_resolv_conf();
    if (fd < 0 && errno == ENOENT) {
        make_way();
        fd = open_resolv_conf();
    }
    if (fd < 0 || write(fd, text, used) != (ssize_t)used)
        system_log("can't write", RESOLV_CONF);
    if (fd >= 0)
        close(fd);
}

/* --- one interface -------------------------------------------------------------------------- */

static void enter(struct interface *it, enum phase phase, int64_t at_ms)
{
    it->phase = phase;
    it->tries = 0;
    it->pause_ms = FIRST_PAUSE_MS;
    it->next_ms = at_ms;
}

static void bound(struct interface *it)
{
    int64_t half_ms = (int64_t)it->lease.seconds * 500;
    if (half_ms < SHORTEST_HALF_MS)
        half_ms = SHORTEST_HALF_MS;
    bool for_ever = it->lease.seconds == DHCP_FOREVER;
    enter(it, BOUND, for_ever ? -1 : now_ms() + half_ms);
    it->expires_ms = for_ever ? -1 : now_ms() + 2 * half_ms;
}

static void send_message(struct interface *it)
{
    uint8_t packet[DHCP_PACKET_BYTES];
    struct sockaddr_ll everybody = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP),
                                    .sll_ifindex = it->index, .sll_halen = DHCP_MAC_BYTES};
    memset(everybody.sll_addr, 0xff, DHCP_MAC_BYTES);
    const struct dhcp_lease *wanted = it->phase == SELECTING ? NULL : &it->lease;
    size_t length = dhcp_write(packet, it->xid, it->mac, wanted, it->phase == RENEWING);
    sendto(it->fd, packet, length, 0, (struct sockaddr *)&everybody, sizeof everybody);
}

/* Its time has come. Returns whether it has just lost its lease. */
static bool proceed(int control, struct interface *it)
{
    bool lost = it->phase == RENEWING && now_ms() >= it->expires_ms;
    if (it->phase == ABSENT) {
        if (set_up(control, it) && open_packets(it)) {
            getrandom(&it->xid, sizeof it->xid, 0);
            enter(it, SELECTING, 0);
        } else if (it->fd >= 0) {
            close(it->fd);
            it->fd = -1;
        }
    } else if (it->phase == BOUND) {
        enter(it, RENEWING, 0);
    } else if (lost || (it->phase == REQUESTING && it->tries >= REQUESTS)) {
        enter(it, SELECTING, 0);
    }
    if (it->phase != ABSENT)
        send_message(it);
    it->tries++;
    it->next_ms = now_ms() + it->pause_ms;
    if (it->phase == RENEWING && it->next_ms > it->expires_ms)
        it->next_ms = it->expires_ms;
    if (it->pause_ms < LONGEST_PAUSE_MS)
        it->pause_ms *= 2;
    return lost;
}

enum outcome { NOTHING, GAINED, LOST };

/* What it says of the interface's lease. */
static enum outcome receive(struct interface *it)
{
    uint8_t packet[DHCP_PACKET_BYTES];
    struct dhcp_lease lease;
    ssize_t length = recv(it->fd, packet, sizeof packet, 0);
    if (length <= 0)
        return NOTHING;
    enum dhcp_type type = dhcp_read(packet, (size_t)length, it->xid, it->mac, &lease);
    if (type == DHCP_OFFER && it->phase == SELECTING) {
        it->lease = lease;
        enter(it, REQUESTING, 0);
    } else if (type == DHCP_NAK && (it->phase == REQUESTING || it->phase == RENEWING)) {
        bool had = it->phase == RENEWING;
        enter(it, SELECTING, now_ms() + FIRST_PAUSE_MS);
        return had ? LOST : NOTHING;
    } else if (type == DHCP_ACK && (it->phase == REQUESTING || it->phase == RENEWING)) {
        it->lease = lease;
        bound(it);
        return GAINED;
    }
    return NOTHING;
}

/* --- all of them, in a process of their own -------------------------------------------------- */

static int wait_time(const struct interface *interfaces, int count)
{
    int64_t first = -1, now = now_ms();
    for (int i = 0; i < count; i++)
        if (interfaces[i].next_ms >= 0 && (first < 0 || interfaces[i].next_ms < first))
            first = interfaces[i].next_ms;
    if (first < 0)
        return -1;
    return first <= now ? 0 : first - now > 1 << 30 ? 1 << 30 : (int)(first - now);
}

/* Nothing of a lease that has ended stays. */
static void give_up(int control, const struct interface *interfaces, int count,
                    struct interface *it)
{
    drop_lease(control, it);
    write_resolv_conf(interfaces, count);
}

static _Noreturn void keep(struct interface *interfaces, int count, int settling)
{
    struct pollfd polled[MAX_INTERFACES];
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    prctl(PR_SET_NAME, "microvm-dhcp");
    for (;;) {
        int unbound = 0;
        for (int i = 0; i < count; i++) {
            struct interface *it = &interfaces[i];
            if (it->next_ms >= 0 && it->next_ms <= now_ms() && proceed(control, it))
                give_up(control, interfaces, count, it);
            polled[i] = (struct pollfd){.fd = it->fd, .events = POLLIN};
            unbound += it->phase < BOUND;
        }
        if (unbound == 0 && settling >= 0) {
            close(settling);
            settling = -1;
        }
        int wait_ms = wait_time(interfaces, count);
        if (wait_ms < 0)
            _exit(0); /* leases for ever */
        if (poll(polled, (nfds_t)count, wait_ms) <= 0)
            continue;
        for (int i = 0; i < count; i++) {
            enum outcome outcome = polled[i].revents != 0 ? receive(&interfaces[i]) : NOTHING;
            if (outcome == LOST)
                give_up(control, interfaces, count, &interfaces[i]);
            if (outcome != GAINED)
                continue;
            use_lease(control, &interfaces[i], i);
            write_resolv_conf(interfaces, count);
        }
    }
}

static int read_names(struct interface *interfaces)
{
    char word[MAX_WORD];
    int count = 0;
    if (!system_word("dhcp", word, sizeof word))
        return 0;
    char *rest = word;
    for (char *name = strsep(&rest, ","); name != NULL; name = strsep(&rest, ",")) {
        if (*name == 0 || strlen(name) >= IFNAMSIZ || count == MAX_INTERFACES)
            continue;
        struct interface *it = &interfaces[count++];
        *it = (struct interface){.fd = -1, .pause_ms = FIRST_PAUSE_MS};
        memcpy(it->name, name, strlen(name));
    }
    return count;
}

void network_begin(void)
{
    static struct interface interfaces[MAX_INTERFACES];
    int ends[2], count = read_names(interfaces);
    if (count == 0 || pipe2(ends, O_CLOEXEC) != 0)
        return;
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        keep(interfaces, count, ends[1]);
    }
    close(ends[1]);
    settled = ends[0];
    deadline_ms = now_ms() + COMMANDS_WAIT_MS;
}

bool network_pending(void)
{
    if (settled < 0)
        return false;
    struct pollfd ended = {.fd = settled};
    if (poll(&ended, 1, 0) == 0 && now_ms() < deadline_ms)
        return true;
    close(settled);
    settled = -1;
    return false;
}

void network_wait(void)
{
    struct pollfd ended = {.fd = settled};
    int64_t left = deadline_ms - now_ms();
    if (settled >= 0 && left > 0)
        poll(&ended, 1, (int)left);
}
