/* What changes names, in the fast lane. Each request is noted where the next worker finds it before it
 * has an effect (inflight.py), so that it happens once; Python hears of it before it does anything
 * else.
 */
#define _GNU_SOURCE
#include "desk.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "desks.h"

/* Let Python hear of a new name; its directory was `before` that. */
static void tell_made(uint64_t parent, const struct stat *before, uint64_t nodeid,
                      const struct stat *real, const char *name, size_t length)
{
    hot->note(parent, before);
    hot->tell(&(struct hot_event){.nodeid = nodeid,
                                  .ino = real->st_ino,
                                  .nlink = real->st_nlink,
                                  .other = parent,
                                  .kind = EVENT_MADE,
                                  .mode = real->st_mode & S_IFMT,
                                  .name = name,
                                  .length = length});
}

/* Let Python hear that a name went. */
static void tell_removed(uint64_t parent, const Removal *it, const char *name, size_t length)
{
    hot->note(parent, &it->before);
    hot->tell(&(struct hot_event){.nodeid = it->nodeid,
                                  .ino = it->real.st_ino,
                                  .blocks = (uint64_t)it->real.st_blocks,
                                  .nlink = it->real.st_nlink,
                                  .other = parent,
                                  .kind = EVENT_REMOVED,
                                  .name = name,
                                  .length = length});
}

/* Make a file and open it. The kernel is told before Python, which makes the node when it hears. */
static enum verdict answer_create(int fd, const struct in_header *request, const void *body,
                                  size_t size)
{
    const struct create_in *wish = body;
    const char *name = (const char *)(wish + 1);
    Desk *desk = desk_for(request->nodeid);
    Creation it;
    if (!desk || !hot->passes() || size <= sizeof(*wish) || request->unique & RESENT)
        return COLD;
    size_t length = strnlen(name, size - sizeof(*wish));
    if (!hot->may_tell() || !creation_plan(desk, request, wish, name, length, &it))
        return COLD;
    hot->intend(request->unique);
    if (!creation_make(desk, &it)) {
        hot->settled();
        return COLD;
    }
    struct opened *entry = hot->find(it.nodeid)
                               ? NULL
                               : hot->make(fd, it.nodeid, OPENED_UPPER, it.file, &it.real);
    if (entry && !names->claim(desk->handed, it.nodeid, request->nodeid)) {
        hot->forgotten(fd, it.nodeid);
        entry = NULL;
    }
    if (!entry) {
        creation_undo(&it);
        hot->settled();
        return COLD;
    }
    close(it.file);
    card_add(desk, it.nodeid, it.fd, it.path, &it.real);
    struct entry_out out = {
        .nodeid = it.nodeid,
        .entry_valid = desk->valid,
        .attr_valid = desk->valid, /* nothing can be mapped yet: what changes it, the kernel sees */
        .entry_valid_nsec = desk->valid_nsec,
        .attr_valid_nsec = desk->valid_nsec,
    };
    desk_say(&out.attr, it.nodeid, &it.real);
    bool is_writer = (wish->flags & O_ACCMODE) != O_RDONLY;
    tell_made(request->nodeid, &it.before, it.nodeid, &it.real, name, length);
    hot->enter_new(fd, request, entry, is_writer ? &it.real : NULL, &out);
    hot->settled();
    return ANSWERED;
}

/* Remove a name of a file that nobody has open past us, and let go of its id. */
static enum verdict answer_unlink(int fd, const struct in_header *request, const void *body,
                                  size_t size)
{
    const char *name = body;
    size_t length = strnlen(name, size);
    const Desk *desk = desk_for(request->nodeid);
    Removal it;
    if (!desk || !hot->passes() || length == size || request->unique & RESENT)
        return COLD;
    if (!hot->may_tell() || !removal_plan(desk, request->nodeid, name, length, &it))
        return COLD;
    const struct opened *entry = hot->find(it.nodeid);
    if (entry && (entry->is_inherited || opened_opens(entry)))
        return COLD;
    hot->intend(request->unique);
    if (!removal_make(desk, &it)) {
        hot->settled();
        return COLD;
    }
    hot->forgotten(fd, it.nodeid);
    tell_removed(request->nodeid, &it, name, length);
    hot->reply(fd, request->unique, 0, NULL, 0);
    hot->settled();
    return ANSWERED;
}

int entries_begin(const struct hot_api *api)
{
    return api->add(OP_CREATE, answer_create) && api->add(OP_UNLINK, answer_unlink);
}
