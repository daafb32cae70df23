#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include "clock.h"
#include "hot.h"

#define READS_BETWEEN_LOOKS 16 /* at what else the thread has to do */
#define LINGER_NS 100000
#define CROWDED_NS 20000 /* what a yield takes that has let somebody else run */
#define LEAST_ROOM_NS 1000000
#define MOST_ROOM_NS 1000000000

static bool comes_soon;
static int64_t alone_from_ns, room_ns = LEAST_ROOM_NS;

/* Answer what can be answered now; DONE when there may be more, and others are to have their turn. */
static enum received drain(int fd)
{
    enum received found = DONE;
    for (int i = 0; i < READS_BETWEEN_LOOKS && found == DONE; i++)
        found = channel_read_one(fd);
    return found;
}

int64_t now_ms(void)
{
    return now_ns() / 1000000;
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

/* Somebody else ran on this processor while it was offered to them. */
static enum received make_room(int64_t at_ns)
{
    alone_from_ns = at_ns + room_ns;
    room_ns = room_ns * 2 < MOST_ROOM_NS ? room_ns * 2 : MOST_ROOM_NS;
    return NOTHING;
}

/* Look for the next request for a moment, without sleep: who asks one after the other is back sooner
 * than this thread, or a virtual processor that halted, is awake again. Only while that has been so
 * lately, and while nobody else wants the processor. */
static enum received linger(int fd, int64_t start_ns)
{
    int64_t at_ns = start_ns;
    if (start_ns < alone_from_ns)
        return NOTHING;
    while (comes_soon) {
        enum received found = channel_read_one(fd);
        if (found != NOTHING) {
            room_ns = room_ns / 2 > LEAST_ROOM_NS ? room_ns / 2 : LEAST_ROOM_NS;
            return found;
        }
        sched_yield();
        int64_t before_ns = at_ns;
        at_ns = now_ns();
        if (at_ns - before_ns > CROWDED_NS)
            return make_room(at_ns);
        comes_soon = at_ns - start_ns < LINGER_NS;
    }
    return NOTHING;
}

static int sleep_until_one(struct pollfd *waited, int left)
{
    int64_t start_ns = now_ns();
    int ready = poll(waited, 2, left);
    if (ready > 0 && waited[0].revents && now_ns() - start_ns < LINGER_NS)
        comes_soon = true;
    return ready;
}

bool idle(int fd, int other_fd, int timeout_ms)
{
    struct pollfd waited[] = {{.fd = fd, .events = POLLIN}, {.fd = other_fd, .events = POLLIN}};
    int64_t end_ms = timeout_ms > 0 ? now_ms() + timeout_ms : timeout_ms;
    for (int unlooked = 1;; unlooked++) {
        enum received drained = drain(fd);
        if (drained != DONE && drained != NOTHING)
            return true;
        int left = timeout_ms ? left_ms(earlier(end_ms, events_due_ms())) : 0;
        int64_t at_ns = now_ns();
        awake_look(at_ns);
        if (drained == NOTHING && left && unlooked % READS_BETWEEN_LOOKS) {
            enum received found = linger(fd, at_ns);
            if (found == DONE)
                continue;
            if (found != NOTHING)
                return true;
        }
        int sleep = (int)earlier(awake_ms(), left);
        int ready = sleep_until_one(waited, sleep);
        if (!ready && sleep != left) {
            awake_end();
            continue;
        }
        if (ready <= 0 || waited[1].revents || !left) /* what keeps coming puts nothing off */
            return false;
    }
}
