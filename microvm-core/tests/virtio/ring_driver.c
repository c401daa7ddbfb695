/* The guest's half of a split virtqueue, in C, over memory shared with the device's process.

   ring_driver MEMFD BYTES KICK CALL SIZE DESC AVAIL USED HEAP EVENT_IDX INDIRECT COUNT

   Offers COUNT requests of five shapes (`shapes`), with up to all descriptors in flight, and
   checks what comes back: that each chain used was offered, that the device says it wrote as much
   as it did, the answer, and that nothing behind the answer was touched. A question is eight
   bytes of noise; its answer is the same bytes backwards; where nothing is asked, it is the
   request's number.

   It kicks when the device wants it and only then, and when nothing is there to do it sleeps
   until it is called. So a notification that either side owes and withholds is the end: it is
   bounded by LOST_MS. Memory orders are those of virtio 1.2, 2.7.13 and 2.7.14, as C11 has them.

   Ends with a line of numbers on stdout, or with a sentence on stderr and a code of 1. */

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { F_NEXT = 1, F_WRITE = 2, F_INDIRECT = 4, NO_INTERRUPT = 1, NO_NOTIFY = 1 };
enum { LOST_MS = 10000, AREA = 64, TABLE = 48, ANSWER_AT = 16, ANSWER_ROOM = 40, FILL = 0xEE };

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct used_elem { uint32_t id, len; };
struct shape { int count, writable; uint32_t length[3]; };

/* Pieces in order, and from which on the device writes. */
static const struct shape shapes[] = {
    {1, 0, {8}}, {1, 1, {8}}, {2, 1, {8, 16}}, {3, 2, {3, 5, 8}}, {3, 1, {8, 5, 11}},
};

struct request { uint64_t number, question; const struct shape *shape; int offered; };

static uint8_t *ram;
static struct desc *table;
static uint16_t *avail, *used; /* flags, idx, ring ..., event */
static unsigned size, mask, event_idx, indirect;
static uint64_t heap, state = 88172645463325252u;
static uint16_t free_list[32768], avail_idx, kicked_idx, used_idx;
static unsigned free_count;
static struct request requests[32768];
static uint64_t kicks, sleeps, naps_cut, total;
static int kick_fd, call_fd;

static void fail(const char *what, uint64_t about)
{
    fprintf(stderr, "%s (%" PRIu64 "): avail %u, kicked %u, used %u of %u\n", what, about,
            avail_idx, kicked_idx, used_idx, __atomic_load_n(&used[1], __ATOMIC_ACQUIRE));
    exit(1);
}

static uint64_t noise(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static void offer(uint64_t number)
{
    uint16_t head = free_list[--free_count], index = head;
    struct request *request = &requests[head];
    uint64_t area = heap + (uint64_t)head * AREA, at = area;
    struct desc *pieces = (struct desc *)(ram + heap + (uint64_t)size * AREA + head * TABLE);
    int i;

    request->number = number;
    request->shape = &shapes[noise() % 5];
    request->question = noise();
    request->offered = 1;
    memcpy(ram + area, &request->question, 8);
    memset(ram + area + ANSWER_AT, FILL, ANSWER_ROOM);
    if (request->shape->writable)
        total += request->question;
    for (i = 0; i < request->shape->count; i++) {
        int last = i + 1 == request->shape->count;
        struct desc *entry = indirect ? &pieces[i] : &table[index];
        if (i == request->shape->writable)
            at = area + ANSWER_AT;
        entry->addr = at;
        entry->len = request->shape->length[i];
        entry->flags = (last ? 0 : F_NEXT) | (i < request->shape->writable ? 0 : F_WRITE);
        entry->next = last ? 0 : indirect ? i + 1 : free_list[--free_count];
        index = entry->next;
        at += entry->len;
    }
    if (indirect)
        table[head] = (struct desc){(uint8_t *)pieces - ram, 16 * i, F_INDIRECT, 0};
    avail[2 + (avail_idx & mask)] = head;
    __atomic_store_n(&avail[1], ++avail_idx, __ATOMIC_RELEASE);
}

static void kick(void)
{
    uint16_t offered = avail_idx - kicked_idx;
    int wanted;

    fence();
    if (event_idx) {
        uint16_t event = __atomic_load_n(&used[2 + 4 * size], __ATOMIC_RELAXED);
        wanted = (uint16_t)(avail_idx - event - 1) < offered;
    } else {
        wanted = offered && !(__atomic_load_n(&used[0], __ATOMIC_RELAXED) & NO_NOTIFY);
    }
    kicked_idx = avail_idx;
    if (wanted) {
        uint64_t one = 1;
        if (write(kick_fd, &one, 8) != 8)
            fail("no kick", 0);
        kicks++;
    }
}

static void check(struct used_elem element)
{
    struct request *request = &requests[element.id & mask];
    const uint8_t *answer = ram + heap + (uint64_t)element.id * AREA + ANSWER_AT;
    uint64_t expected;
    uint32_t length;
    uint16_t index = element.id;
    int i;

    if (element.id > mask || !request->offered)
        fail("used, but never offered", element.id);
    expected = request->shape->writable ? __builtin_bswap64(request->question) : request->number;
    length = request->shape->writable < request->shape->count ? 8 : 0;
    if (element.len != length)
        fail("not what was written", element.len);
    if (length && memcmp(answer, &expected, 8))
        fail("not the answer", request->number);
    for (i = length; i < ANSWER_ROOM; i++)
        if (answer[i] != FILL)
            fail("written behind the answer", request->number);
    request->offered = 0;
    for (i = 0; i < (indirect ? 1 : request->shape->count); i++) {
        uint16_t next = table[index].next;
        free_list[free_count++] = index;
        index = next;
    }
}

static unsigned reap(void)
{
    struct used_elem *ring = (struct used_elem *)(used + 2);
    unsigned done = 0;

    while (used_idx != __atomic_load_n(&used[1], __ATOMIC_ACQUIRE)) {
        check(ring[used_idx & mask]);
        used_idx++;
        done++;
    }
    return done;
}

/* Until `more` requests are done beyond those reaped; with flags instead of indexes, until one. */
static void sleep_until_called(uint16_t more)
{
    struct pollfd call = {call_fd, POLLIN, 0};
    uint64_t rings;

    if (event_idx)
        __atomic_store_n(&avail[2 + size], used_idx + more - 1, __ATOMIC_RELAXED);
    else
        __atomic_store_n(&avail[0], 0, __ATOMIC_RELAXED);
    fence();
    if ((uint16_t)(__atomic_load_n(&used[1], __ATOMIC_ACQUIRE) - used_idx) >= (event_idx ? more : 1)) {
        naps_cut++;
    } else {
        sleeps++;
        if (poll(&call, 1, LOST_MS) != 1)
            fail("The driver sleeps for good: a wake-up was lost", sleeps);
        if (read(call_fd, &rings, 8) != 8)
            fail("no call", 0);
    }
    if (!event_idx)
        __atomic_store_n(&avail[0], NO_INTERRUPT, __ATOMIC_RELAXED);
}

static void dally(unsigned most)
{
    unsigned left;

    for (left = noise() % most; left; left--)
        __asm__ volatile("");
}

/* Wait, without a word to the device, until all but the last are used; not for ever. */
static void watch(void)
{
    uint16_t last = avail_idx - 1;
    unsigned left;

    for (left = 1 << 20; left && last != __atomic_load_n(&used[1], __ATOMIC_RELAXED); left--)
        __asm__ volatile("");
}

int main(int argc, char **argv)
{
    uint64_t number[13] = {0}, sent = 0, done = 0;
    int i;

    if (argc != 13)
        return 2;
    for (i = 1; i < argc; i++)
        number[i] = strtoull(argv[i], NULL, 0);
    ram = mmap(NULL, number[2], PROT_READ | PROT_WRITE, MAP_SHARED, number[1], 0);
    if (ram == MAP_FAILED)
        return 2;
    kick_fd = number[3];
    call_fd = number[4];
    size = number[5];
    mask = size - 1;
    table = (struct desc *)(ram + number[6]);
    avail = (uint16_t *)(ram + number[7]);
    used = (uint16_t *)(ram + number[8]);
    heap = number[9];
    event_idx = number[10];
    indirect = number[11];
    for (i = size; i--;)
        free_list[free_count++] = i;
    while (done < number[12]) {
        /* A chain takes up to three descriptors. */
        unsigned room = indirect ? free_count : free_count / 3;
        /* One round in four is deep; in the others both sides run dry all the time. */
        int deep = noise() % 4 == 0;
        unsigned burst = noise() % (deep ? 64 : 8) + 1;
        uint16_t in_flight;

        for (; burst && room && sent < number[12]; burst--, room--)
            offer(sent++);
        kick();
        /* Mostly go to sleep as the device is about to use the last, which takes it a few us. */
        if (noise() % 16)
            watch();
        done += reap();
        dally(16384);
        if (deep && sent < number[12])
            continue;
        while ((in_flight = avail_idx - used_idx) != 0) {
            /* As Linux: for the next one, or for three quarters (its "delayed" callback). */
            sleep_until_called(noise() % 4 ? 1 : in_flight - in_flight / 4);
            done += reap();
        }
        /* And offer in the midst of its going to sleep. */
        dally(32768);
    }
    printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", done, total, kicks,
           sleeps, naps_cut);
    return 0;
}
