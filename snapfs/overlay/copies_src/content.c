/* A file's data: shared with its copy where the file system can, else copied, holes as holes. */
#include "copies.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BLOCK_BYTES ((size_t)1 << 20)
#define PART_BYTES ((off_t)8 << 20)
#ifndef SYS_cachestat
#define SYS_cachestat 451 /* Linux 6.5 */
#endif
#define WAIT_FOR_ALL \
    (SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER)

static bool cannot_share(int number)
{
    return number == EOPNOTSUPP || number == EXDEV || number == EINVAL || number == ENOTTY ||
           number == EPERM || number == ETXTBSY;
}

static int write_all(int target, const char *bytes, size_t count, off_t at)
{
    while (count) {
        ssize_t done = pwrite(target, bytes, count, at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        bytes += done;
        count -= (size_t)done;
        at += done;
    }
    return 0;
}

/* One block by reading and writing it; returns how much, 0 at the end of the source. */
static ssize_t copy_block(int source, int target, off_t at, size_t count)
{
    char *block = malloc(count < BLOCK_BYTES ? count : BLOCK_BYTES);
    if (!block) {
        errno = ENOMEM;
        return -1;
    }
    ssize_t got;
    do
        got = pread(source, block, count < BLOCK_BYTES ? count : BLOCK_BYTES, at);
    while (got < 0 && errno == EINTR);
    if (got > 0 && write_all(target, block, (size_t)got, at))
        got = -1;
    int number = errno;
    free(block);
    errno = number;
    return got;
}

/* What of a copy is being written out while the next part is copied. */
typedef struct {
    int target;
    bool is_wanted;
    off_t begun, end; /* of the part that is under way; nothing before it is dirty */
} Behind;

/* Begins to write out a part that is there, and waits for the one before: two at most are dirty. */
static int write_behind(Behind *self, off_t reached)
{
    if (!self->is_wanted || reached - self->end < PART_BYTES)
        return 0;
    off_t before = self->end - self->begun;
    if (sync_file_range(self->target, self->end, reached - self->end, SYNC_FILE_RANGE_WRITE) ||
        (before && sync_file_range(self->target, self->begun, before, WAIT_FOR_ALL)))
        return -1;
    self->begun = self->end;
    self->end = reached;
    return 0;
}

static int copy_range(int source, Behind *behind, off_t at, off_t end)
{
    while (at < end) {
        off_t from = at, to = at;
        size_t count = (size_t)(end - at < PART_BYTES ? end - at : PART_BYTES);
        ssize_t done = copy_file_range(source, &from, behind->target, &to, count, 0);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && (errno == EXDEV || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP))
            done = copy_block(source, behind->target, at, count);
        if (!done)
            errno = EIO; /* the source became shorter while it was copied */
        if (done <= 0)
            return -1;
        at += done;
        if (write_behind(behind, at))
            return -1;
    }
    return 0;
}

/* The next part with data at or after `at`: 1, or 0 when there is none. */
static int next_extent(int fd, off_t at, off_t size_bytes, off_t *start, off_t *end)
{
    *start = lseek(fd, at, SEEK_DATA);
    if (*start < 0 && errno == ENXIO)
        return 0;
    if (*start < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) {
        *start = at;
        *end = size_bytes;
        return 1;
    }
    if (*start < 0)
        return -1;
    *end = lseek(fd, *start, SEEK_HOLE);
    if (*end < 0)
        return -1;
    if (*end > size_bytes)
        *end = size_bytes;
    return 1;
}

/* The file whose data it is may be longer than what it is of. Else nothing is done: xfs would take
 * room to write the last block anew. */
static int cut_longer(int target, off_t size_bytes)
{
    struct stat real;
    if (fstat(target, &real))
        return -1;
    return real.st_size > size_bytes ? ftruncate(target, size_bytes) : 0;
}

static int copy_parts(int source, int target, off_t size_bytes, enum order order)
{
    Behind behind = {.target = target, .is_wanted = order != ORDER_NOTHING};
    if (ftruncate(target, size_bytes))
        return -1;
    for (off_t at = 0, start, end; at < size_bytes; at = end) {
        int found = next_extent(source, at, size_bytes, &start, &end);
        if (found <= 0)
            return found;
        if (copy_range(source, &behind, start, end))
            return -1;
    }
    return 0;
}

int copy_content(int source, const char *content, int target, off_t size_bytes, enum order order,
                 bool *cloned)
{
    *cloned = false;
    if (!size_bytes)
        return 0;
    if (!ioctl(target, FICLONE, source)) {
        *cloned = true;
        return cut_longer(target, size_bytes);
    }
    if (!cannot_share(errno))
        return -1;
    if (content ? write_all(target, content, (size_t)size_bytes, 0)
                : copy_parts(source, target, size_bytes, order))
        return -1;
    /* It goes on while the copy gets all else. */
    return order == ORDER_WRITTEN ? sync_file_range(target, 0, 0, SYNC_FILE_RANGE_WRITE) : 0;
}

int is_clean(int fd)
{
    struct {
        uint64_t offset, length;
    } whole = {0, 0};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } pages;
    if (syscall(SYS_cachestat, fd, &whole, &pages, 0))
        return -1;
    return !pages.dirty && !pages.writeback;
}

int order_content(int target, enum order order, bool cloned)
{
    if (order == ORDER_SYNCED)
        return fsync(target);
    if (order == ORDER_WRITTEN && !cloned)
        return sync_file_range(target, 0, 0, WAIT_FOR_ALL);
    return 0;
}
