/* Load on a disk, past the page cache: blk_load PATH r|w SIZE DEPTH COUNT, prints microseconds.
 *
 * DEPTH threads, each with one request of SIZE bytes under way: at places that jump about for
 * small requests, one after the other from 1 MiB on.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int disk;
static int writes;
static size_t size;
static uint64_t places;
static long count;
static long next;

static void *work(void *unused)
{
    (void)unused;
    char *buffer = aligned_alloc(4096, size);
    if (!buffer)
        exit(1);
    for (size_t at = 0; at < size; at++)
        buffer[at] = (char)at;
    for (;;) {
        long n = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        if (n >= count)
            return NULL;
        uint64_t place = size < 1 << 20 ? (uint64_t)n * 7919 % places : (uint64_t)n % places;
        off_t at = (off_t)(place * size);
        ssize_t done = writes ? pwrite(disk, buffer, size, at) : pread(disk, buffer, size, at);
        if (done != (ssize_t)size) {
            perror("transfer");
            exit(1);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    writes = argv[2][0] == 'w';
    size = strtoul(argv[3], NULL, 10);
    int depth = atoi(argv[4]);
    count = atol(argv[5]);
    disk = open(argv[1], O_RDWR | O_DIRECT);
    off_t bytes = disk < 0 ? 0 : lseek(disk, 0, SEEK_END);
    if (bytes < (off_t)size) {
        perror(argv[1]);
        return 1;
    }
    places = (uint64_t)bytes / size;
    pthread_t threads[64];
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int i = 0; i < depth; i++)
        if (pthread_create(&threads[i], NULL, work, NULL))
            return 1;
    for (int i = 0; i < depth; i++)
        pthread_join(threads[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%ld\n", (end.tv_sec - start.tv_sec) * 1000000L + (end.tv_nsec - start.tv_nsec) / 1000);
    return 0;
}
