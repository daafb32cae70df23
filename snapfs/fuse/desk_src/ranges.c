/* Copies of what is left of a small file (copy_file_range(2)), in the fast lane. See desk.h, spaces.py.
 *
 * What is not in memory is Python's to wait for, and so are file systems in which copies share their blocks.
 */
#define _GNU_SOURCE
#include "desk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../channel_src/clock.h"
#include "desks.h"

#define MOST_COPIED (128u * 1024u) /* as files.INLINE_WRITE_BYTES */
#define SLOW_COPY_NS 5000000
#define SLOW_FOR_NS 1000000000
#define XFS_MAGIC 0x58465342 /* linux/magic.h has it since Linux 5.18 */

struct copy_in {
    uint64_t fh_in;
    uint64_t off_in;
    uint64_t nodeid_out;
    uint64_t fh_out;
    uint64_t off_out;
    uint64_t len;
    uint64_t flags;
};

static_assert(sizeof(struct copy_in) == 56, "fuse_copy_file_range_in");

static char *buffer;
static int64_t slow_until_ns;

/* Whether both files are named by their nodes: open past us, or in a lane without opens. */
static int is_by_node(const struct copy_in *wish)
{
    uint64_t handle = hot->is_without_opens() ? 0 : PASSING_HANDLE;
    return wish->fh_in == handle && wish->fh_out == handle;
}

static int shares_blocks(int file)
{
    struct statfs found;
    return fstatfs(file, &found) || found.f_type == BTRFS_SUPER_MAGIC || found.f_type == XFS_MAGIC;
}

/* Read all that is left behind a place into the buffer; 0 when it is too much or not in memory. */
static size_t read_rest(const Desk *desk, uint64_t ino, const struct copy_in *wish)
{
    struct stat real;
    int is_upper, file = first_open(desk, ino, &real, &is_upper);
    if (file < 0)
        return 0;
    uint64_t size = (uint64_t)real.st_size;
    size_t rest = wish->off_in < size && size - wish->off_in <= MOST_COPIED
                      ? (size_t)(size - wish->off_in)
                      : 0;
    struct iovec part = {buffer, rest};
    int is_read = rest && wish->len >= rest &&
                  preadv2(file, &part, 1, (off_t)wish->off_in, RWF_NOWAIT) == (ssize_t)rest;
    close(file);
    return is_read ? rest : 0;
}

/* Open a file of the upper layer that may be written as it is; a descriptor, or -1. */
static int open_target(const Desk *desk, uint64_t ino, struct stat *before)
{
    char path[PATH_MAX];
    int fd, is_upper;
    struct stat real;
    if (!first_may_write(desk, ino, before) || !file_place(desk, ino, path, &fd, &is_upper))
        return -1;
    int file = openat(fd, path, O_WRONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return -1;
    if (is_upper && fstat(file, &real) == 0 && real.st_ino == before->st_ino &&
        real.st_dev == before->st_dev && !shares_blocks(file))
        return file;
    close(file);
    return -1;
}

/* Copy; how much that was, or 0 when Python is to do it all: what is there then, it writes again. */
static size_t copy(const Desk *from, uint64_t ino, const Desk *to, const struct copy_in *wish)
{
    struct stat before;
    int file = open_target(to, wish->nodeid_out, &before);
    if (file < 0)
        return 0;
    size_t size = read_rest(from, ino, wish);
    if (size) {
        hot->note(wish->nodeid_out, &before);
        if (pwrite(file, buffer, size, (off_t)wish->off_out) != (ssize_t)size)
            size = 0;
    }
    close(file);
    return size;
}

static size_t answer(const struct in_header *request, const void *body, size_t size)
{
    const struct copy_in *wish = body;
    if (size < sizeof(*wish) || wish->flags || !is_by_node(wish) || !hot->may_note() ||
        request->nodeid == wish->nodeid_out)
        return 0;
    const Desk *from = desk_for(request->nodeid), *to = desk_for(wish->nodeid_out);
    int64_t began_ns = now_ns();
    if (!from || !to || slow_until_ns > began_ns)
        return 0;
    size_t copied = copy(from, request->nodeid, to, wish);
    if (now_ns() - began_ns > SLOW_COPY_NS)
        slow_until_ns = began_ns + SLOW_FOR_NS;
    return copied;
}

static enum verdict answer_copy(int fd, const struct in_header *request, const void *body,
                                size_t size)
{
    struct {
        uint32_t size;
        uint32_t padding;
    } out = {.size = (uint32_t)answer(request, body, size)};
    if (!out.size)
        return COLD;
    hot->reply(fd, request->unique, 0, &out, sizeof(out));
    return ANSWERED;
}

static enum verdict answer_copy_64(int fd, const struct in_header *request, const void *body,
                                   size_t size)
{
    uint64_t out = answer(request, body, size);
    if (!out)
        return COLD;
    hot->reply(fd, request->unique, 0, &out, sizeof(out));
    return ANSWERED;
}

int ranges_begin(const struct hot_api *api)
{
    return (buffer = malloc(MOST_COPIED)) && api->add(OP_COPY_FILE_RANGE, answer_copy) &&
           api->add(OP_COPY_FILE_RANGE_64, answer_copy_64);
}
