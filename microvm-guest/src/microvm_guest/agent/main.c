/* The guest agent: process 1 of a microvm guest, or a service of a larger one. */

#include <stdio.h>
#include <unistd.h>

int main(void)
{
    printf("microvm-agent %s\n", MICROVM_AGENT_BUILD);
    fflush(stdout);
    if (getpid() != 1)
        return 0;
    for (;;)
        pause(); /* process 1 never returns: the kernel panics when it does */
}
