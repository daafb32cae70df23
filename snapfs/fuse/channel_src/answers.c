/* Handlers for opening, attributes and contents, from what Python has offered of a node. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "hot.h"

/* Bit 63 tells handles of the fast lane from Python's, the rest those of this process from those of
 * an earlier one. */
#define HANDLE_BIT (UINT64_C(1) << 63)

struct getattr_in {
    uint32_t flags;
    uint32_t dummy;
    uint64_t fh;
};

struct attr_reply {
    uint64_t valid;
    uint32_t valid_nsec;
    uint32_t dummy;
    struct attr_out attr;
};

struct open_in {
    uint32_t flags;
    uint32_t open_flags;
};

struct release_in {
    uint64_t fh;
    uint32_t flags;
    uint32_t release_flags;
    uint64_t lock_owner;
};

struct getxattr_in {
    uint32_t size;
    uint32_t padding;
};

struct ioctl_in {
    uint64_t fh;
    uint32_t flags;
    uint32_t cmd;
    uint64_t arg;
    uint32_t in_size;
    uint32_t out_size;
};

struct read_in {
    uint64_t fh;
    uint64_t offset;
    uint32_t size;
    uint32_t read_flags;
    uint64_t lock_owner;
    uint32_t flags;
    uint32_t padding;
};

struct batch_forget_in {
    uint32_t count;
    uint32_t dummy;
    struct {
        uint64_t nodeid;
        uint64_t lookups;
    } forgets[];
};

static uint64_t handle;
static char *contents; /* of one READ */

static enum verdict say(int fd, const struct in_header *request, const void *body, size_t size)
{
    channel_reply(fd, request->unique, 0, body, size);
    return ANSWERED; /* whatever became of it, the kernel will not take another */
}

static enum verdict refuse(int fd, const struct in_header *request, int error)
{
    channel_reply(fd, request->unique, error, NULL, 0);
    return ANSWERED;
}

/* The node of a request, if all of `offers` was offered of it. */
static struct hot_node *offered(const struct in_header *request, uint32_t offers)
{
    struct hot_node *node = nodes_find(request->nodeid);
    return node && (node->offers & offers) == offers ? node : NULL;
}

static enum verdict answer_getattr(int fd, const struct in_header *request, const void *body,
                                   size_t size)
{
    (void)body;
    (void)size;
    const struct hot_node *node = offered(request, OFFER_ATTR);
    if (!node)
        return COLD;
    struct attr_reply reply = {.valid = node->attr_valid_s, .attr = node->attr};
    return say(fd, request, &reply, sizeof(reply));
}

static enum verdict answer_open(int fd, const struct in_header *request, const void *body,
                                size_t size)
{
    const struct open_in *wish = body;
    if (size < sizeof(*wish) || (wish->flags & O_ACCMODE) != O_RDONLY || wish->flags & O_TRUNC)
        return COLD;
    struct hot_node *node = offered(request, OFFER_OPEN);
    if (!node)
        return COLD;
    struct open_out reply = {
        .fh = handle, .open_flags = node->open_flags, .backing_id = node->backing_id};
    nodes_opened(node); /* before the reply: RELEASE may be read by the time this returns */
    return say(fd, request, &reply, sizeof(reply));
}

static enum verdict answer_release(int fd, const struct in_header *request, const void *body,
                                   size_t size)
{
    const struct release_in *wish = body;
    if (size < sizeof(*wish) || !(wish->fh & HANDLE_BIT))
        return COLD;
    if (wish->fh == handle) {
        struct hot_node *node = nodes_find(request->nodeid);
        if (node && node->opens && !nodes_released(node))
            return COLD;
    }
    return refuse(fd, request, 0);
}

static bool begins_with(const char *name, size_t size, const char *prefix)
{
    size_t length = strlen(prefix);
    return size >= length && memcmp(name, prefix, length) == 0;
}

static enum verdict answer_getxattr(int fd, const struct in_header *request, const void *body,
                                    size_t size)
{
    if (size <= sizeof(struct getxattr_in))
        return COLD;
    const char *name = (const char *)body + sizeof(struct getxattr_in);
    size_t length = size - sizeof(struct getxattr_in);
    uint32_t needed = begins_with(name, length, "security.") ? OFFER_NO_SECURITY_XATTRS
                      : begins_with(name, length, "user.")   ? OFFER_NO_USER_XATTRS
                                                             : 0;
    return needed && offered(request, needed) ? refuse(fd, request, ENODATA) : COLD;
}

static enum verdict answer_listxattr(int fd, const struct in_header *request, const void *body,
                                     size_t size)
{
    const struct getxattr_in *wish = body;
    if (size < sizeof(*wish) ||
        !(offered(request, OFFER_NO_SECURITY_XATTRS) || offered(request, OFFER_NO_USER_XATTRS)))
        return COLD;
    struct getxattr_in none = {0}; /* fuse_getxattr_out looks the same */
    return say(fd, request, &none, wish->size ? 0 : sizeof(none));
}

/* isatty() of every open() in Python and others: nothing here is a terminal. */
static enum verdict answer_ioctl(int fd, const struct in_header *request, const void *body,
                                 size_t size)
{
    const struct ioctl_in *wish = body;
    if (size < sizeof(*wish) || wish->cmd != TCGETS)
        return COLD;
    return refuse(fd, request, ENOTTY);
}

static bool ends_at(int file, uint64_t end)
{
    struct stat now;
    return fstat(file, &now) == 0 && (uint64_t)now.st_size <= end;
}

/* Send what is in memory. Whatever takes waiting, or fails, is Python's. */
static enum verdict answer_read(int fd, const struct in_header *request, const void *body,
                                size_t size)
{
    const struct read_in *wish = body;
    if (size < sizeof(*wish) || wish->size > BUFFER_BYTES)
        return COLD;
    const struct hot_node *node = offered(request, OFFER_FD);
    if (!node)
        return COLD;
    struct iovec part = {contents, wish->size};
    ssize_t done = preadv2(node->fd, &part, 1, (off_t)wish->offset, RWF_NOWAIT);
    if (done < 0)
        return COLD;
    if ((size_t)done < wish->size && !ends_at(node->fd, wish->offset + (uint64_t)done))
        return COLD;
    return say(fd, request, contents, (size_t)done);
}

/* What was offered of a node ends when the kernel lets go of it; the rest is Python's. */
static void forgotten(uint64_t nodeid)
{
    struct hot_node *node = nodes_find(nodeid);
    if (node)
        nodes_withdraw(node, OFFER_ALL);
}

static enum verdict see_forget(int fd, const struct in_header *request, const void *body,
                               size_t size)
{
    (void)fd;
    (void)body;
    (void)size;
    forgotten(request->nodeid);
    return COLD;
}

static enum verdict see_batch_forget(int fd, const struct in_header *request, const void *body,
                                     size_t size)
{
    (void)fd;
    (void)request;
    const struct batch_forget_in *batch = body;
    if (size < sizeof(*batch))
        return COLD;
    size_t room = (size - sizeof(*batch)) / sizeof(batch->forgets[0]);
    for (size_t i = 0; i < batch->count && i < room; i++)
        forgotten(batch->forgets[i].nodeid);
    return COLD;
}

uint64_t answers_handle(void)
{
    return handle;
}

bool answers_register(void)
{
    if (handle)
        return true;
    if (!contents && !(contents = malloc(BUFFER_BYTES)))
        return false;
    uint64_t number;
    if (getrandom(&number, sizeof(number), 0) != sizeof(number))
        return false;
    handle = number | HANDLE_BIT;
    return hot_register(OP_GETATTR, answer_getattr) && hot_register(OP_OPEN, answer_open) &&
           hot_register(OP_RELEASE, answer_release) &&
           hot_register(OP_GETXATTR, answer_getxattr) &&
           hot_register(OP_LISTXATTR, answer_listxattr) && hot_register(OP_READ, answer_read) &&
           hot_register(OP_IOCTL, answer_ioctl) &&
           hot_register(OP_FORGET, see_forget) && hot_register(OP_BATCH_FORGET, see_batch_forget);
}
