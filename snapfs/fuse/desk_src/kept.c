/* A table of open descriptors by node. See kept.h.
 *
 * INVARIANT: what is kept of a node is its file as long as the node has that one: who makes it another
 * file (a copy-up), or lets go of it, drops it in the same step (Desk.strike). Everything here runs on
 * the session's thread, but for kept_release.
 */
#include "kept.h"

#include <stdlib.h>
#include <unistd.h>

#define BUCKETS 1024

static struct kept *buckets[BUCKETS];
static struct kept *newest, *oldest;
static size_t count;

static struct kept **link_of(uint64_t nodeid)
{
    struct kept **link = &buckets[(size_t)(nodeid * 0x9e3779b97f4a7c15u >> 32) % BUCKETS];
    while (*link && (*link)->nodeid != nodeid)
        link = &(*link)->next;
    return link;
}

static void take_out(struct kept *file)
{
    *(file->newer ? &file->newer->older : &newest) = file->older;
    *(file->older ? &file->older->newer : &oldest) = file->newer;
}

static void put_first(struct kept *file)
{
    file->newer = NULL;
    file->older = newest;
    *(newest ? &newest->newer : &oldest) = file;
    newest = file;
}

struct kept *kept_find(uint64_t nodeid)
{
    struct kept *file = *link_of(nodeid);
    if (file && file != newest) {
        take_out(file);
        put_first(file);
    }
    return file;
}

void kept_hold(struct kept *file)
{
    atomic_fetch_add(&file->users, 1);
}

void kept_release(struct kept *file)
{
    if (atomic_fetch_sub(&file->users, 1) > 1)
        return;
    close(file->fd);
    free(file);
}

void kept_drop(uint64_t nodeid)
{
    struct kept **link = link_of(nodeid), *file = *link;
    if (!file)
        return;
    *link = file->next;
    take_out(file);
    count--;
    kept_release(file);
}

void kept_drop_tree(uint64_t prefix, unsigned low_bits)
{
    for (struct kept *file = newest, *older; file; file = older) {
        older = file->older;
        if (file->nodeid >> low_bits == prefix >> low_bits)
            kept_drop(file->nodeid);
    }
}

struct kept *kept_add(uint64_t nodeid, int fd, int is_writable)
{
    kept_drop(nodeid);
    struct kept *file = malloc(sizeof(*file));
    if (!file) {
        close(fd);
        return NULL;
    }
    if (count >= MOST_KEPT)
        kept_drop(oldest->nodeid);
    struct kept **link = link_of(nodeid);
    *file = (struct kept){.nodeid = nodeid, .fd = fd, .is_writable = is_writable, .users = 1};
    *link = file;
    put_first(file);
    count++;
    return file;
}

size_t kept_count(void)
{
    return count;
}
