#include <poll.h>
#include <unistd.h>

#include "hot.h"

#define READS_BETWEEN_LOOKS 16 /* at what else the thread has to do */

static void wake(int wake_fd)
{
    uint64_t one = 1;
    while (write(wake_fd, &one, sizeof(one)) < 0) {
        /* EINTR; an eventfd that is already readable takes one more */
    }
}

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

void idle(int fd, int other_fd, int wake_fd, int timeout_ms)
{
    struct pollfd waited[] = {{.fd = fd, .events = POLLIN}, {.fd = other_fd, .events = POLLIN}};
    int ready;
    do {
        if (drain(fd))
            break;
        ready = poll(waited, 2, timeout_ms);
        if (ready > 0 && waited[1].revents)
            return;
    } while (ready > 0);
    /* Whoever called is about to wait for `other_fd`, as long as if this had taken no time and
     * with nobody looking at `fd`: that must end at once. */
    if (timeout_ms)
        wake(wake_fd);
}
