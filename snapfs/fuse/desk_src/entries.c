/* What changes names, in the fast lane. Each request is noted where the next worker finds it before it
 * has an effect (inflight.py), so that it happens once; Python hears of it before it does anything
 * else.
 */
#define _GNU_SOURCE
#include "desk.h"

#include <fcntl.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "desks.h"
#include "kept.h"

#define SPARE_BYTES (UINT64_C(64) << 20) /* as overlay/freeing.py */

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

void tell_removed(uint64_t parent, const Removal *it, const char *name, size_t length)
{
    hot->tell(&(struct hot_event){.nodeid = it->nodeid,
                                  .ino = it->real.st_ino,
                                  .blocks = (uint64_t)it->real.st_blocks,
                                  .nlink = it->real.st_nlink,
                                  .other = parent,
                                  .kind = EVENT_REMOVED,
                                  .name = name,
                                  .length = length});
}

/* What the kernel is told of a new name; attributes that mappings may change are not to be kept. */
static struct entry_out entry_of(const Desk *desk, uint64_t nodeid, const struct stat *real,
                                 bool is_lasting)
{
    struct entry_out out = {
        .nodeid = nodeid,
        .entry_valid = desk->valid,
        .attr_valid = is_lasting ? desk->valid : 0,
        .entry_valid_nsec = desk->valid_nsec,
        .attr_valid_nsec = is_lasting ? desk->valid_nsec : 0,
    };
    desk_say(&out.attr, nodeid, real);
    return out;
}

/* Nothing can be mapped in a new file yet, so what changes it, the kernel sees. */
static struct entry_out entry_of_new(const Desk *desk, const Creation *it)
{
    return entry_of(desk, it->nodeid, &it->real, true);
}

/* Make what was planned; 0 when Python is to do it all. */
static int make(const struct in_header *request, Desk *desk, Creation *it)
{
    hot->intend(request->unique, 0, 0);
    if (creation_make(desk, it)) {
        if (!hot->find(it->nodeid) && names->claim(desk->handed, it->nodeid, request->nodeid))
            return 1;
        creation_undo(it);
    }
    hot->settled();
    return 0;
}

/* Give what is new to everybody but the kernel. */
static void enter(const struct in_header *request, Desk *desk, const Creation *it, const char *name,
                  size_t length)
{
    card_add(desk, it->nodeid, &it->site, &it->real, NULL);
    tell_made(request->nodeid, &it->site.before, it->nodeid, &it->real, name, length);
}

/* Make a file and open it. The kernel is told before Python, which makes the node when it hears. */
static enum verdict answer_create(int fd, const struct in_header *request, const void *body,
                                  size_t size)
{
    const struct create_in *wish = body;
    const char *name = (const char *)(wish + 1);
    Desk *desk = desk_for(request->nodeid);
    if (!desk || !hot->passes() || size <= sizeof(*wish) || request->unique & RESENT)
        return COLD;
    Creation it = {.mode = S_IFREG | (wish->mode & ~wish->umask & 07777), .access = O_RDONLY};
    size_t length = name_length(name, size - sizeof(*wish));
    if (!length || !hot->may_tell() || !creation_plan(desk, request, name, length, &it) ||
        !make(request, desk, &it))
        return COLD;
    struct opened *entry = hot->make(fd, it.nodeid, OPENED_UPPER, it.file, &it.real);
    if (!entry) {
        names->disclaim(desk->handed, it.nodeid);
        creation_undo(&it);
        hot->settled();
        return COLD;
    }
    close(it.file);
    enter(request, desk, &it, name, length);
    struct entry_out out = entry_of_new(desk, &it);
    bool is_writer = (wish->flags & O_ACCMODE) != O_RDONLY;
    hot->enter_new(fd, request, entry, is_writer ? &it.real : NULL, &out);
    hot->settled();
    return ANSWERED;
}

/* Make what is not opened. */
static enum verdict answer_new(int fd, const struct in_header *request, const char *name,
                               size_t length, Creation *it)
{
    Desk *desk = desk_for(request->nodeid);
    if (!desk || !length || !hot->takes_names() || request->unique & RESENT || !hot->may_tell())
        return COLD;
    if (!creation_plan(desk, request, name, length, it) || !make(request, desk, it))
        return COLD;
    if (it->file >= 0)
        kept_add(it->nodeid, it->file, 1);
    enter(request, desk, it, name, length);
    struct entry_out out = entry_of_new(desk, it);
    hot->reply(fd, request->unique, 0, &out, sizeof(out));
    hot->settled();
    return ANSWERED;
}

/* A lane without opens makes a file by its name only; it is most often written next. */
static enum verdict answer_mknod(int fd, const struct in_header *request, const void *body,
                                 size_t size)
{
    const struct mknod_in *wish = body;
    const char *name = (const char *)(wish + 1);
    if (!hot->is_without_opens() || size <= sizeof(*wish) || !S_ISREG(wish->mode))
        return COLD;
    Creation it = {.mode = S_IFREG | (wish->mode & ~wish->umask & 07777), .access = O_RDWR};
    return answer_new(fd, request, name, name_length(name, size - sizeof(*wish)), &it);
}

static enum verdict answer_mkdir(int fd, const struct in_header *request, const void *body,
                                 size_t size)
{
    const struct mkdir_in *wish = body;
    const char *name = (const char *)(wish + 1);
    if (size <= sizeof(*wish))
        return COLD;
    Creation it = {.mode = S_IFDIR | (wish->mode & ~wish->umask & 07777)};
    return answer_new(fd, request, name, name_length(name, size - sizeof(*wish)), &it);
}

/* The name comes first, then what it leads to. */
static enum verdict answer_symlink(int fd, const struct in_header *request, const void *body,
                                   size_t size)
{
    const char *name = body;
    size_t length = name_length(name, size);
    if (!length || length + 1 >= size || !memchr(name + length + 1, 0, size - length - 1))
        return COLD;
    Creation it = {.mode = S_IFLNK | 0777, .target = name + length + 1};
    return answer_new(fd, request, name, length, &it);
}

/* Let Python hear of a further name of a file, and that the kernel has looked it up. */
static void tell_linked(uint64_t nodeid, const Further *it, const char *name, size_t length)
{
    hot->note(it->site.parent, &it->site.before);
    hot->note(nodeid, &it->before);
    hot->tell(&(struct hot_event){.nodeid = nodeid,
                                  .other = it->site.parent,
                                  .kind = EVENT_LINKED,
                                  .name = name,
                                  .length = length});
}

/* Give a file a further name. */
static enum verdict answer_link(int fd, const struct in_header *request, const void *body,
                                size_t size)
{
    const struct link_in *wish = body;
    const char *name = (const char *)(wish + 1);
    if (request->unique & RESENT || !hot->takes_names() || size <= sizeof(*wish))
        return COLD;
    Desk *desk = desk_for(request->nodeid);
    size_t length = name_length(name, size - sizeof(*wish));
    uint64_t nodeid = wish->old_nodeid;
    Further it;
    if (!desk || desk_for(nodeid) != desk || !length || !hot->may_tell() ||
        !further_plan(desk, nodeid, request->nodeid, name, length, &it))
        return COLD;
    hot->intend(request->unique, 0, 0);
    if (!further_make(&it)) {
        hot->settled();
        return COLD;
    }
    names->claim(desk->handed, nodeid, request->nodeid); /* it is claimed: says where it is too */
    card_move(desk, nodeid, &it.site, &it.real);
    tell_linked(nodeid, &it, name, length);
    struct entry_out out = entry_of(desk, nodeid, &it.real, !desks_is_written(nodeid));
    hot->reply(fd, request->unique, 0, &out, sizeof(out));
    hot->settled();
    return ANSWERED;
}

bool is_open(uint64_t nodeid)
{
    const struct opened *entry = hot->find(nodeid);
    return entry && (entry->is_inherited || opened_opens(entry));
}

/* Whether a file would lose its last name while somebody has it open past us, which is Python's. */
static bool is_needed(const Removal *it)
{
    return !it->stays_in && is_open(it->nodeid);
}

/* Let go of the id of a file that has lost its last name. */
static void let_go(int fd, const Removal *it)
{
    if (!it->stays_in)
        hot->forgotten(fd, it->nodeid);
}

/* Leave changes to Python until what a removed file holds is free, where it may be needed: it is kept
 * until the kernel forgets it, which it says when unlink(2) has returned. */
static void await_space(Desk *desk, const Removal *it)
{
    struct statvfs found;
    if (it->stays_in || it->real.st_blocks < BIG_BLOCKS || fstatvfs(desk->keeps_in, &found))
        return;
    uint64_t wanted = (uint64_t)it->real.st_blocks * 512 + SPARE_BYTES;
    if (found.f_bavail * found.f_frsize >= wanted)
        return;
    desk->awaits_space = 1;
    desk->takes_names = desk->takes_writers = 0;
}

/* Remove a name that only the upper layer has. */
static enum verdict remove_name(int fd, const struct in_header *request, Desk *desk,
                                const char *name, size_t length, int is_directory)
{
    Removal it;
    if (!hot->may_tell() || !removal_plan(desk, request->nodeid, name, length, is_directory, &it))
        return COLD;
    if (is_needed(&it))
        return COLD;
    hot->intend(request->unique, 0, 0);
    if (!removal_make(desk, &it)) {
        hot->settled();
        return COLD;
    }
    let_go(fd, &it);
    hot->note(request->nodeid, &it.site.before);
    tell_removed(request->nodeid, &it, name, length);
    await_space(desk, &it);
    hot->reply(fd, request->unique, 0, NULL, 0);
    hot->settled();
    return ANSWERED;
}

static enum verdict answer_removal(int fd, const struct in_header *request, const void *body,
                                   size_t size, int is_directory)
{
    const char *name = body;
    size_t length = name_length(name, size);
    Desk *desk = desk_for(request->nodeid);
    if (!desk || !length || !hot->takes_names() || request->unique & RESENT)
        return COLD;
    if (remove_name(fd, request, desk, name, length, is_directory) == ANSWERED)
        return ANSWERED;
    return (is_directory ? hide_directory : hide_file)(fd, request, desk, name, length);
}

static enum verdict answer_unlink(int fd, const struct in_header *request, const void *body,
                                  size_t size)
{
    return answer_removal(fd, request, body, size, 0);
}

static enum verdict answer_rmdir(int fd, const struct in_header *request, const void *body,
                                 size_t size)
{
    return answer_removal(fd, request, body, size, 1);
}

/* Let Python hear of a move, once it has heard of what was replaced. */
static void tell_moved(const Names *n, const Move *it)
{
    hot->note(n->parent, &it->node.site.before);
    hot->note(n->new_parent, &it->target.site.before);
    hot->note(it->node.nodeid, &it->node.real);
    if (it->replaces)
        tell_removed(n->new_parent, &it->target, n->new_name, n->new_length);
    hot->tell(&(struct hot_event){.nodeid = it->node.nodeid,
                                  .other = n->new_parent,
                                  .kind = EVENT_MOVED,
                                  .name = n->new_name,
                                  .length = n->new_length});
}

/* Take the names of a request apart; 0 when they are not whole. */
static int read_names(const struct in_header *request, const void *body, size_t size, Names *n)
{
    const struct rename_in *wish = body;
    if (size <= sizeof(*wish))
        return 0;
    n->parent = request->nodeid;
    n->new_parent = wish->new_parent;
    n->name = (const char *)(wish + 1);
    size -= sizeof(*wish);
    n->length = name_length(n->name, size);
    if (!n->length || n->length + 1 >= size)
        return 0;
    n->new_name = n->name + n->length + 1;
    n->new_length = name_length(n->new_name, size - n->length - 1);
    return n->new_length > 0;
}

/* Move a file, maybe in place of another name. */
static enum verdict answer_rename(int fd, const struct in_header *request, const void *body,
                                  size_t size)
{
    Names n;
    Move it;
    if (request->unique & RESENT || !hot->takes_names() || !read_names(request, body, size, &n))
        return COLD;
    Desk *desk = desk_for(n.parent);
    if (!desk || desk_for(n.new_parent) != desk || !hot->may_tell() || !move_plan(desk, &n, &it))
        return COLD;
    if (it.replaces && is_needed(&it.target))
        return COLD;
    hot->intend(request->unique, it.node.nodeid, it.replaces ? it.target.nodeid : 0);
    if (!move_make(desk, &it)) {
        hot->settled();
        return COLD;
    }
    if (it.replaces)
        let_go(fd, &it.target);
    names->claim(desk->handed, it.node.nodeid, n.new_parent); /* it is claimed: says where it is now */
    card_move(desk, it.node.nodeid, &it.target.site, &it.node.real);
    tell_moved(&n, &it);
    if (it.replaces)
        await_space(desk, &it.target);
    hot->reply(fd, request->unique, 0, NULL, 0);
    hot->settled();
    return ANSWERED;
}

int entries_begin(const struct hot_api *api)
{
    return api->add(OP_CREATE, answer_create) && api->add(OP_MKNOD, answer_mknod) &&
           api->add(OP_MKDIR, answer_mkdir) && api->add(OP_SYMLINK, answer_symlink) &&
           api->add(OP_LINK, answer_link) && api->add(OP_UNLINK, answer_unlink) &&
           api->add(OP_RMDIR, answer_rmdir) && api->add(OP_RENAME, answer_rename);
}
