/* What writes a copy's data out. See writing.h.
 *
 * Where a disk has as many requests as it takes, even to begin waits until it has done one. So the
 * session's thread begins only if a disk has none to write; else, and where that cannot be told, the other
 * does, which takes a change of threads. One is under way at most: what is late is given up, and no
 * other tried.
 */
#define _GNU_SOURCE
#include "writing.h"

#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "../channel_src/clock.h"
#include "../../overlay/copies_src/copies.h"
#include "readers.h"

#define LOOK_NS 20000
#define FEW_READS 3 /* a disk takes four requests at least */

enum state { FREE, BEGUN /* here */, UNDER_WAY, WRITTEN, NOT_WRITTEN };

extern const CopiesApi *copies;

static _Atomic enum state state;
static int file;

static void write_out(void)
{
    bool failed = copies->order_content(file, ORDER_WRITTEN, false);
    close(file);
    state = failed ? NOT_WRITTEN : WRITTEN;
}

/* Have the other thread write out, and close, what may have been begun here. */
static int leave(void)
{
    state = UNDER_WAY;
    if (readers_do(write_out))
        return 0;
    close(file);
    state = FREE;
    return -1;
}

/* The file of the kernel that says what a disk has to do, or -1; not of one that is made of others. */
static int open_inflight(dev_t device)
{
    char disk[64], path[PATH_MAX];
    int used = snprintf(disk, sizeof(disk), "/sys/dev/block/%u:%u", major(device), minor(device));
    snprintf(path, sizeof(path), "%s/partition", disk);
    if (!access(path, F_OK))
        snprintf(disk + used, sizeof(disk) - (size_t)used, "/..");
    static const char *const made[] = {"dm", "md"};
    for (size_t i = 0; i < sizeof(made) / sizeof(made[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", disk, made[i]);
        if (!access(path, F_OK))
            return -1;
    }
    snprintf(path, sizeof(path), "%s/inflight", disk);
    return open(path, O_RDONLY | O_CLOEXEC);
}

static bool has_idle_disk(int target)
{
    static dev_t device;
    static int inflight = -1;
    struct stat real;
    char text[64];
    unsigned reads, writes;
    if (fstat(target, &real))
        return false;
    if (real.st_dev != device) {
        if (inflight >= 0)
            close(inflight);
        inflight = open_inflight(device = real.st_dev);
    }
    ssize_t size = inflight < 0 ? -1 : pread(inflight, text, sizeof(text) - 1, 0);
    if (size <= 0)
        return false;
    text[size] = 0;
    return sscanf(text, "%u %u", &reads, &writes) == 2 && !writes && reads < FEW_READS;
}

bool writing_is_free(void)
{
    if (state == BEGUN) /* and then its copy failed */
        leave();
    return state != UNDER_WAY;
}

int writing_begin(int target)
{
    if (!writing_is_free() || (file = fcntl(target, F_DUPFD_CLOEXEC, 0)) < 0)
        return -1;
    if (!has_idle_disk(target) || sync_file_range(file, 0, 0, SYNC_FILE_RANGE_WRITE))
        return leave();
    state = BEGUN;
    return 0;
}

static bool goes_on(void)
{
    if (state == BEGUN && copies->is_clean(file) > 0)
        write_out(); /* for its errors, without a wait */
    return state == BEGUN || state == UNDER_WAY;
}

bool writing_ends_soon(long most_ns)
{
    int64_t end_ns = now_ns() + most_ns;
    while (goes_on() && now_ns() < end_ns)
        nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
    if (state == BEGUN)
        leave();
    return state == WRITTEN;
}
