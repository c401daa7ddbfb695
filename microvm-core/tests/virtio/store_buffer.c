/* The other half of test_fence.py: stores its word, and then looks for the tester's.

   store_buffer MEMFD

   The words are 16 bits wide and 512 bytes apart. For each `round` the tester stores `mine`,
   and at the same time we store `theirs`; each loads the other's word after its own store. What
   we saw goes to `saw`, and `done` ends the round. A round of 0xFFFF is the end. */

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    uint16_t *words, round = 0, seen;
    unsigned left, count = 0;

    if (argc != 2)
        return 2;
    words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
    if (words == MAP_FAILED)
        return 2;
    alarm(120);
    for (;;) {
        uint16_t *mine = &words[256], *theirs = &words[512], *saw = &words[768];
        uint16_t *done = &words[1024];

        do {
            seen = __atomic_load_n(&words[0], __ATOMIC_ACQUIRE);
            if (seen == 0xFFFF)
                return 0;
        } while (seen == round);
        round = seen;
        /* Hit the tester at another moment each time. */
        for (left = count++ * 7 % 64; left; left--)
            __asm__ volatile("");
        __atomic_store_n(theirs, round, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        __atomic_store_n(saw, __atomic_load_n(mine, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
        __atomic_store_n(done, round, __ATOMIC_RELEASE);
    }
}
