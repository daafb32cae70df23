/* Desks in the fast lane: requests that a tree's desk answers without the interpreter.
 *
 * The table of desks is changed with the interpreter's lock held and read without it, by the same
 * thread: the session's.
 */
#define _GNU_SOURCE
#include "desk.h"

#include <errno.h>
#include <limits.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "desks.h"
#include "kept.h"

#define LOW_BITS 40 /* identity.LOW_BITS: the bits above say which tree a node is of */
#define INCARNATION (UINT64_C(1) << 63)
#define PAGE_BYTES (128u * 1024u)
#define VALUE_BYTES (64u * 1024u)
#define PROC_ROOM 64

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

struct read_in {
    uint64_t fh;
    uint64_t offset;
    uint32_t size;
};

struct getxattr_in {
    uint32_t size;
    uint32_t padding;
};

struct forget {
    uint64_t nodeid;
    uint64_t lookups;
};

struct batch_forget_in {
    uint32_t count;
    uint32_t dummy;
    struct forget forgets[];
};

static Desk **desks; /* open addressing by tree; a power of two of slots */
static size_t slots, count;
const struct hot_api *hot;
static char *buffer; /* of one reply */

static uint64_t key_of(const Desk *desk)
{
    return desk->handed->prefix >> LOW_BITS;
}

static size_t slot_of(Desk **table, size_t size, uint64_t key)
{
    size_t at = (size_t)(key * 0x9e3779b97f4a7c15u >> 32) & (size - 1);
    while (table[at] && key_of(table[at]) != key)
        at = (at + 1) & (size - 1);
    return at;
}

Desk *desk_for(uint64_t nodeid)
{
    if (!slots || nodeid & INCARNATION)
        return NULL;
    return desks[slot_of(desks, slots, nodeid >> LOW_BITS)];
}

/* Make the table anew, without `left`; 0 when memory is short. */
static int rebuild(const Desk *left)
{
    size_t size = 16;
    while (size < (count + 1) * 2)
        size *= 2;
    Desk **table = calloc(size, sizeof(*table));
    if (!table)
        return 0;
    for (size_t i = 0; i < slots; i++)
        if (desks[i] && desks[i] != left)
            table[slot_of(table, size, key_of(desks[i]))] = desks[i];
    free(desks);
    desks = table;
    slots = size;
    return 1;
}

int desks_add(Desk *desk)
{
    if (!hot)
        return 1;
    if (!rebuild(NULL))
        return 0;
    size_t at = slot_of(desks, slots, key_of(desk));
    if (desks[at])
        return 1; /* another one of the tree */
    desks[at] = (Desk *)Py_NewRef(desk);
    count++;
    return 1;
}

int desks_remove(Desk *desk)
{
    size_t at = slots ? slot_of(desks, slots, key_of(desk)) : 0;
    if (!slots || desks[at] != desk)
        return 1;
    count--;
    if (!rebuild(desk)) {
        count++;
        return 0;
    }
    kept_drop_tree(desk->handed->prefix, LOW_BITS);
    Py_DECREF(desk);
    return 1;
}

int desks_is_written(uint64_t nodeid)
{
    const struct opened *entry = hot ? hot->find(nodeid) : NULL;
    return entry && opened_writers(entry);
}

static enum verdict say(int fd, const struct in_header *request, const void *body, size_t size)
{
    hot->reply(fd, request->unique, 0, body, size);
    return ANSWERED;
}

static enum verdict refuse(int fd, const struct in_header *request, int error)
{
    hot->reply(fd, request->unique, error, NULL, 0);
    return ANSWERED;
}

/* Answer with what a desk said. */
static enum verdict pass_on(int fd, const struct in_header *request, int result, const void *body,
                            size_t size)
{
    if (result == LEFT_TO_PYTHON)
        return COLD;
    return result < 0 ? refuse(fd, request, -result) : say(fd, request, body, size);
}

size_t name_length(const char *from, size_t size)
{
    size_t length = strnlen(from, size);
    if (length == size || length > NAME_MAX || memchr(from, '/', length))
        return 0;
    return strcmp(from, ".") && strcmp(from, "..") ? length : 0;
}

static enum verdict answer_lookup(int fd, const struct in_header *request, const void *body,
                                  size_t size)
{
    Desk *desk = desk_for(request->nodeid);
    size_t length = name_length(body, size);
    if (!desk || !length)
        return COLD;
    lister_looked_up(request->nodeid);
    struct entry_out out;
    int result = desk_lookup(desk, request->nodeid, body, length, &out);
    return pass_on(fd, request, result, &out, sizeof(out));
}

static enum verdict answer_list(int fd, const struct in_header *request, const void *body,
                                size_t size, int plus)
{
    const struct read_in *wish = body;
    Desk *desk = desk_for(request->nodeid);
    if (!desk || size < sizeof(*wish))
        return COLD;
    size_t room = wish->size < PAGE_BYTES ? wish->size : PAGE_BYTES;
    size_t used = 0;
    if (desk_list_ends(desk, request->nodeid, wish->offset) && desk->absence)
        return say(fd, request, NULL, 0);
    const Wish page = {request->nodeid, wish->offset, request->pid, plus};
    int result = desk_list(desk, &page, 0, buffer, room, &used);
    return pass_on(fd, request, result, buffer, used);
}

static enum verdict answer_readdir(int fd, const struct in_header *request, const void *body,
                                   size_t size)
{
    return answer_list(fd, request, body, size, 0);
}

static enum verdict answer_readdirplus(int fd, const struct in_header *request, const void *body,
                                       size_t size)
{
    return answer_list(fd, request, body, size, 1);
}

/* Attributes of a file that is open for writing are not to be kept: mappings change them and tell
 * nobody. */
static struct attr_reply timed(const Desk *desk, uint64_t nodeid)
{
    if (desks_is_written(nodeid))
        return (struct attr_reply){0};
    return (struct attr_reply){.valid = desk->valid, .valid_nsec = desk->valid_nsec};
}

static enum verdict answer_getattr(int fd, const struct in_header *request, const void *body,
                                   size_t size)
{
    (void)body;
    (void)size;
    const Desk *desk = desk_for(request->nodeid);
    if (!desk)
        return COLD;
    struct attr_reply reply = timed(desk, request->nodeid);
    int result = desk_getattr(desk, request->nodeid, &reply.attr);
    return pass_on(fd, request, result, &reply, sizeof(reply));
}

static enum verdict answer_setattr(int fd, const struct in_header *request, const void *body,
                                   size_t size)
{
    const struct setattr_in *wish = body;
    Desk *desk = desk_for(request->nodeid);
    struct stat before, after;
    if (!desk || size < sizeof(*wish) || !hot->may_note() || !change_is_simple(wish))
        return COLD;
    desk_copy_up(desk, request->nodeid, ATTRIBUTES);
    desk_directory_up(desk, request->nodeid);
    int result = desk_change(desk, request->nodeid, wish, &before, &after);
    if (result == LEFT_TO_PYTHON)
        return COLD;
    hot->note(request->nodeid, &before);
    if (result < 0)
        return refuse(fd, request, -result);
    struct attr_reply reply = timed(desk, request->nodeid);
    desk_say(&reply.attr, request->nodeid, &after);
    return say(fd, request, &reply, sizeof(reply));
}

/* What must be new, or must be there, happens once: such is left to Python, which notes it. */
static enum verdict answer_setxattr(int fd, const struct in_header *request, const void *body,
                                    size_t size)
{
    const struct setxattr_in *wish = body;
    const char *name = (const char *)(wish + 1);
    Desk *desk = desk_for(request->nodeid);
    size_t room = size < sizeof(*wish) ? 0 : size - sizeof(*wish), length = strnlen(name, room);
    struct stat before;
    if (!desk || !desk->xattrs || length == room || room - length - 1 < wish->size || wish->flags ||
        !hot->may_note() || !attribute_is_simple(name))
        return COLD;
    desk_copy_up(desk, request->nodeid, ATTRIBUTES);
    desk_directory_up(desk, request->nodeid);
    const char *value = name + length + 1;
    if (desk_set_attribute(desk, request->nodeid, name, value, wish->size, &before) != DONE_HERE)
        return COLD;
    hot->note(request->nodeid, &before);
    return say(fd, request, NULL, 0);
}

static enum verdict answer_readlink(int fd, const struct in_header *request, const void *body,
                                    size_t size)
{
    (void)body;
    (void)size;
    const Desk *desk = desk_for(request->nodeid);
    char path[PATH_MAX];
    int at;
    if (!desk || desk_path(desk, request->nodeid, path, &at) != DONE_HERE)
        return COLD;
    ssize_t length = readlinkat(at, path, buffer, PATH_MAX);
    return length < 0 ? COLD : say(fd, request, buffer, (size_t)length);
}

/* Path of a file for calls without directory descriptors, where its attributes are for all to see. */
static int proc_path(const struct in_header *request, char *path)
{
    const Desk *desk = desk_for(request->nodeid);
    char rest[PATH_MAX];
    int at;
    if (!desk || !desk->xattrs)
        return 0;
    if (desk_path(desk, request->nodeid, rest, &at) != DONE_HERE &&
        desk_child_path(desk, request->nodeid, rest, &at) != DONE_HERE)
        return 0;
    int length = say_path(path, at, rest);
    return length && length < PATH_MAX - PROC_ROOM;
}

/* Names that have rules: some are the overlay's own, and who may list them depends. */
static int has_rules(const char *name)
{
    static const char trusted[] = "trusted.";
    return strncmp(name, trusted, sizeof(trusted) - 1) == 0;
}

/* What who asks for an attribute that is not there is told; see labels.py. */
static int absence(const Desk *desk, const char *name)
{
    return desk->refuses_labels && strcmp(name, "security.selinux") == 0 ? EOPNOTSUPP : ENODATA;
}

/* Send a value, or its length to who asks with no room for it. */
static enum verdict send_value(int fd, const struct in_header *request, size_t room, size_t length)
{
    struct getxattr_in only_length = {.size = (uint32_t)length};
    if (!room)
        return say(fd, request, &only_length, sizeof(only_length));
    return length > room ? refuse(fd, request, ERANGE) : say(fd, request, buffer, length);
}

static enum verdict answer_getxattr(int fd, const struct in_header *request, const void *body,
                                    size_t size)
{
    const struct getxattr_in *wish = body;
    const char *name = (const char *)body + sizeof(*wish);
    char path[PATH_MAX];
    if (size <= sizeof(*wish) || !memchr(name, 0, size - sizeof(*wish)) || has_rules(name))
        return COLD;
    if (!proc_path(request, path))
        return COLD;
    ssize_t length = lgetxattr(path, name, buffer, VALUE_BYTES);
    if (length < 0)
        return errno == ENODATA ? refuse(fd, request, absence(desk_for(request->nodeid), name)) : COLD;
    return send_value(fd, request, wish->size, (size_t)length);
}

static enum verdict answer_listxattr(int fd, const struct in_header *request, const void *body,
                                     size_t size)
{
    const struct getxattr_in *wish = body;
    char path[PATH_MAX];
    if (size < sizeof(*wish) || !proc_path(request, path))
        return COLD;
    ssize_t length = llistxattr(path, buffer, VALUE_BYTES);
    if (length < 0)
        return COLD;
    for (const char *name = buffer; name < buffer + length; name += strlen(name) + 1)
        if (has_rules(name))
            return COLD;
    return send_value(fd, request, wish->size, (size_t)length);
}

/* Open a file that nobody has open, and make an id of it. */
static struct opened *make_entry(int fd, uint64_t nodeid, const Desk *desk)
{
    struct stat real;
    int is_upper;
    int file = first_open(desk, nodeid, &real, &is_upper);
    if (file < 0)
        return NULL;
    struct opened *entry =
        hot->make(fd, nodeid, is_upper ? OPENED_UPPER : OPENED_LOWER, file, &real);
    close(file);
    return entry;
}

/* What is left to do where nobody has a file open (passes.c sees to the others), or to write. */
static enum verdict answer_open(int fd, const struct in_header *request, const void *body,
                                size_t size)
{
    const struct open_in *wish = body;
    Desk *desk = desk_for(request->nodeid);
    if (!desk || !hot->passes() || size < sizeof(*wish) || wish->flags & O_TRUNC)
        return COLD;
    bool is_writer = (wish->flags & O_ACCMODE) != O_RDONLY;
    if (is_writer && (wish->flags & O_SYNC) == O_DSYNC)
        return COLD; /* a copy's name is to be durable first (files.py) */
    struct opened *entry = hot->find(request->nodeid);
    struct stat real;
    if (entry && (entry->is_inherited || !entry->may_read || !is_writer))
        return COLD;
    if (is_writer && !entry)
        desk_copy_up(desk, request->nodeid, CONTENT);
    if (is_writer && !first_may_write(desk, request->nodeid, &real))
        return COLD;
    if (!entry && !(entry = make_entry(fd, request->nodeid, desk)))
        return COLD;
    if (is_writer && (entry->record->kind != OPENED_UPPER || entry->record->ino != real.st_ino ||
                      entry->record->device != real.st_dev))
        return COLD;
    return hot->enter(fd, request, entry, is_writer ? &real : NULL);
}

/* End a file that has come and gone before Python heard of it. */
static int end(Desk *desk, uint64_t nodeid, uint64_t lookups)
{
    if (names->is_inherited(desk->handed, nodeid) || !hot->may_end(nodeid, lookups) ||
        !removal_end(desk, nodeid))
        return 0;
    hot->end(nodeid, lookups);
    names->disclaim(desk->handed, nodeid);
    card_drop(desk, nodeid);
    kept_drop(nodeid);
    return 1;
}

/* Forget lookups that were counted here; the last of a tree are left to Python, which closes it, and
 * so is what is or may be open: the kernel may not have forgotten it (Forest.forget). */
static int forget(int fd, uint64_t nodeid, uint64_t lookups)
{
    Desk *desk = desk_for(nodeid);
    if (!desk)
        return 0;
    const struct opened *entry = hot->find(nodeid);
    if (entry && opened_opens(entry))
        return 0;
    if (names->has_node(desk->handed, nodeid))
        return end(desk, nodeid, lookups) || hot->tell_forgotten(nodeid, lookups);
    if (desk->leaves_forgets && names->is_inherited(desk->handed, nodeid))
        return 0;
    if (desk->handed->total <= lookups || !names->forget(desk->handed, nodeid, lookups))
        return 0;
    Room *room;
    uint32_t slot;
    if (names->guest(desk->handed, nodeid, &room, &slot))
        return 1;
    kept_drop(nodeid);
    card_drop(desk, nodeid);
    if (entry)
        hot->forgotten(fd, nodeid);
    return 1;
}

static enum verdict answer_forget(int fd, const struct in_header *request, const void *body,
                                  size_t size)
{
    const uint64_t *lookups = body;
    return size >= sizeof(*lookups) && forget(fd, request->nodeid, *lookups) ? ANSWERED : COLD;
}

/* What is counted here is struck from the list; the rest goes on to Python. */
static enum verdict answer_batch_forget(int fd, const struct in_header *request, const void *body,
                                        size_t size)
{
    (void)request;
    struct batch_forget_in *batch = (struct batch_forget_in *)body; /* of the channel's buffer */
    if (size < sizeof(*batch) ||
        (size - sizeof(*batch)) / sizeof(batch->forgets[0]) < batch->count)
        return COLD;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < batch->count; i++)
        if (!forget(fd, batch->forgets[i].nodeid, batch->forgets[i].lookups))
            batch->forgets[kept++] = batch->forgets[i];
    batch->count = kept;
    return kept ? COLD : ANSWERED;
}

int desks_begin(const struct hot_api *api)
{
    const struct {
        uint32_t opcode;
        hot_handler handler;
    } all[] = {
        {OP_LOOKUP, answer_lookup},
        {OP_READDIR, answer_readdir},
        {OP_READDIRPLUS, answer_readdirplus},
        {OP_GETATTR, answer_getattr},
        {OP_SETATTR, answer_setattr},
        {OP_OPEN, answer_open},
        {OP_READLINK, answer_readlink},
        {OP_SETXATTR, answer_setxattr},
        {OP_GETXATTR, answer_getxattr},
        {OP_LISTXATTR, answer_listxattr},
        {OP_FORGET, answer_forget},
        {OP_BATCH_FORGET, answer_batch_forget},
    };
    if (!(buffer = malloc(PAGE_BYTES)))
        return 0;
    hot = api;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (!api->add(all[i].opcode, all[i].handler))
            return 0;
    return entries_begin(api) && contents_begin(api) && ranges_begin(api);
}
