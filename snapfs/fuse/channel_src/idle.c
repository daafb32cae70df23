#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "hot.h"

#define READS_BETWEEN_LOOKS 16 /* at what else the thread has to do */

/* Answer what can be answered now; true when something waits for Python. */
static bool drain(int fd)
{
    for (int i = 0; i < READS_BETWEEN_LOOKS; i++)
        switch (channel_read_one(fd)) {
        case NOTHING:
            return false;
        case DONE:
            continue;
        default:
            return true;
        }
    return false;
}

int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* How much of the time until `end_ms` is left, at least 0; -1 when there is no end. */
static int left_ms(int64_t end_ms)
{
    if (end_ms < 0)
        return -1;
    int64_t left = end_ms - now_ms();
    return left > 0 ? (int)left : 0;
}

/* The earlier of two times, of which either may be none. */
static int64_t earlier(int64_t a_ms, int64_t b_ms)
{
    return b_ms < 0 || (a_ms >= 0 && a_ms < b_ms) ? a_ms : b_ms;
}

bool idle(int fd, int other_fd, int timeout_ms)
{
    struct pollfd waited[] = {{.fd = fd, .events = POLLIN}, {.fd = other_fd, .events = POLLIN}};
    int64_t end_ms = timeout_ms > 0 ? now_ms() + timeout_ms : timeout_ms;
    int ready, left;
    do {
        if (drain(fd))
            return true;
        left = timeout_ms ? left_ms(earlier(end_ms, passes_due_ms())) : 0;
        ready = poll(waited, 2, left);
    } while (ready > 0 && !waited[1].revents && left); /* what keeps coming puts nothing off */
    return false;
}
