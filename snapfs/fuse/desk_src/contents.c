/* Reads and writes of a lane without opens, where nobody says what is open: each file has a descriptor
 * here while it is used (kept.c).
 *
 * What is read has to be in memory or is waited for in a thread (readers.c). Written are files of the
 * upper layer as they are; a copy-up, and what has rules, is Python's.
 */
#define _GNU_SOURCE
#include "desk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../channel_src/clock.h"
#include "desks.h"
#include "kept.h"
#include "readers.h"

#define MOST_WRITTEN (128u * 1024u) /* as files.INLINE_WRITE_BYTES */
#define SLOW_WRITE_NS 5000000
#define SLOW_FOR_NS 1000000000

enum {
    WRITE_CACHE = 1 << 0,       /* pages that a mapping changed */
    WRITE_KILL_SUIDGID = 1 << 2 /* who writes may not keep set-id bits */
};

struct file_in {
    uint64_t fh;
    uint64_t offset;
    uint32_t size;
    uint32_t flags;
    uint64_t lock_owner;
    uint32_t open_flags;
    uint32_t padding;
};

static_assert(sizeof(struct file_in) == 40, "fuse_read_in and fuse_write_in");

struct write_out {
    uint32_t size;
    uint32_t padding;
};

static char *buffer; /* of one reply to READ */

/* Whether what was opened is the file that was noted, with data of its own; other names of a lower one
 * may have been copied up. */
static int is_it(const Desk *desk, uint64_t ino, int file, int is_upper)
{
    const Card *card = card_find(desk, ino);
    struct stat real;
    if (fstat(file, &real) || !S_ISREG(real.st_mode))
        return 0;
    if (card && !card->data && (real.st_ino != card->real || real.st_dev != card->device))
        return 0;
    if (!is_upper && desk->handed->linked && real.st_nlink > 1)
        return 0;
    return file_holds_data(file, &real);
}

static struct kept *open_file(const Desk *desk, uint64_t ino, int is_writable)
{
    char path[PATH_MAX];
    int fd, is_upper;
    if (!file_place(desk, ino, path, &fd, &is_upper) || (is_writable && !is_upper))
        return NULL;
    int flags = (is_writable ? O_RDWR : O_RDONLY) | (is_upper ? 0 : O_NOATIME);
    int file = openat(fd, path, flags | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return NULL;
    if (is_it(desk, ino, file, is_upper))
        return kept_add(ino, file, is_writable);
    close(file);
    return NULL;
}

static struct kept *file_of(const Desk *desk, uint64_t ino, int is_writable)
{
    struct kept *file = kept_find(ino);
    return file && file->is_writable >= is_writable ? file : open_file(desk, ino, is_writable);
}

static int is_whole(const struct kept *file, const struct file_in *wish, ssize_t done)
{
    struct stat real;
    return (size_t)done == wish->size ||
           (fstat(file->fd, &real) == 0 && wish->offset + (uint64_t)done >= (uint64_t)real.st_size);
}

/* Whether a request is about the file of a node, which has no handle in such a lane. */
static int is_by_node(const struct file_in *wish, size_t size)
{
    return hot->is_without_opens() && size >= sizeof(*wish) && !wish->fh;
}

static enum verdict answer_read(int fd, const struct in_header *request, const void *body,
                                size_t size)
{
    const struct file_in *wish = body;
    Desk *desk = desk_for(request->nodeid);
    if (!desk || !is_by_node(wish, size) || wish->size > BUFFER_BYTES)
        return COLD;
    struct kept *file = file_of(desk, request->nodeid, 0);
    if (!file || (!buffer && !(buffer = malloc(BUFFER_BYTES))))
        return COLD;
    names->touch(desk->handed, request->nodeid);
    struct iovec part = {buffer, wish->size};
    ssize_t done = preadv2(file->fd, &part, 1, (off_t)wish->offset, RWF_NOWAIT);
    if (done >= 0 && is_whole(file, wish, done)) {
        hot->reply(fd, request->unique, 0, buffer, (size_t)done);
        return ANSWERED;
    }
    if (done < 0 && errno != EAGAIN)
        return COLD;
    return readers_take(fd, hot, request->unique, file, wish->offset, wish->size) ? ANSWERED : COLD;
}

/* Write everything, or what fits before an error; -1 when nothing was. */
static ssize_t write_all(int file, const char *data, size_t size, uint64_t offset)
{
    size_t done = 0;
    do {
        ssize_t more = pwrite(file, data + done, size - done, (off_t)(offset + done));
        if (more < 0 && errno == EINTR)
            continue;
        if (more <= 0)
            return done ? (ssize_t)done : -1;
        done += (size_t)more;
    } while (done < size);
    return (ssize_t)done;
}

/* Whether a file may be written as it is, by who writes. */
static int may_write(const Desk *desk, const struct kept *file, const struct file_in *wish,
                     struct stat *before)
{
    if (fstat(file->fd, before))
        return 0;
    if (wish->flags & WRITE_KILL_SUIDGID && before->st_mode & SET_ID)
        return 0;
    return !is_protected_file(desk, file->fd);
}

static enum verdict answer_write(int fd, const struct in_header *request, const void *body,
                                 size_t size)
{
    const struct file_in *wish = body;
    Desk *desk = desk_for(request->nodeid);
    struct stat before;
    if (!desk || !desk->takes_writers || !is_by_node(wish, size) || !hot->may_note())
        return COLD;
    if (wish->size > MOST_WRITTEN || wish->size > size - sizeof(*wish))
        return COLD;
    desk_copy_up(desk, request->nodeid, CONTENT);
    struct kept *file = file_of(desk, request->nodeid, 1);
    int64_t began_ns = now_ns();
    if (!file || file->slow_until_ns > began_ns || !may_write(desk, file, wish, &before))
        return COLD;
    ssize_t done = write_all(file->fd, (const char *)(wish + 1), wish->size, wish->offset);
    if (done < 0)
        return COLD; /* nothing happened */
    hot->note(request->nodeid, &before);
    if (wish->flags & WRITE_CACHE && (size_t)done < wish->size)
        return COLD; /* Python writes it again, and says why that fails: what is not written of a
                      * mapping's pages is dropped by the kernel */
    if (now_ns() - began_ns > SLOW_WRITE_NS)
        file->slow_until_ns = began_ns + SLOW_FOR_NS;
    struct write_out out = {.size = (uint32_t)done};
    hot->reply(fd, request->unique, 0, &out, sizeof(out));
    return ANSWERED;
}

int contents_begin(const struct hot_api *api)
{
    api->at_stop(readers_drain);
    return api->add(OP_READ, answer_read) && api->add(OP_WRITE, answer_write);
}
