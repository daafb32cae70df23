/* Opens and releases of files that the kernel reads and writes by itself, counted in `opened.c`. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>

#include "hot.h"

#define NOTIFY_INVAL_INODE 2

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

static struct opened_table *table;
static bool is_allowed;
static bool is_without_opens;
static void (*end_contents)(void);

/* Words of a record of a request in flight, as in inflight.py. */
enum { RECORD_UNIQUE, RECORD_FIRST, RECORD_SECOND, RECORD_STATE };
enum { STATE_FREE, STATE_INTENDED };
static _Atomic uint64_t *in_hand;

void passes_use(struct opened_table *wanted)
{
    table = wanted;
    is_allowed = wanted != NULL;
    events_reset();
}

struct opened_table *passes_table(void)
{
    return table;
}

void passes_allow(bool on)
{
    is_allowed = on;
}

void passes_go_without_opens(bool on)
{
    is_without_opens = on;
}

void passes_stop(void)
{
    if (end_contents)
        end_contents();
}

static bool writes(uint32_t flags)
{
    return (flags & O_ACCMODE) != O_RDONLY;
}

static bool passes(void)
{
    return is_allowed;
}

static bool goes_without_opens(void)
{
    return is_without_opens;
}

static bool takes_names(void)
{
    return is_allowed || is_without_opens;
}

static void at_stop(void (*end)(void))
{
    end_contents = end;
}

static struct opened *find(uint64_t nodeid)
{
    return table ? opened_find(table, nodeid) : NULL;
}

/* Let go of an entry and of its file. */
static void drop(int device, struct opened *entry)
{
    int32_t backing_id = entry->record->backing_id;
    opened_remove(table, entry);
    backing_close(device, backing_id); /* unknown to the kernel: nothing is held */
}

static struct opened *make(int device, uint64_t nodeid, enum opened_kind kind, int file,
                           const struct stat *real)
{
    struct opened_record record = {
        .nodeid = nodeid, .ino = real->st_ino, .device = real->st_dev, .kind = kind};
    if (!is_allowed || backing_open(device, file, &record.backing_id))
        return NULL;
    struct opened *entry = opened_add(table, &record);
    if (!entry) {
        backing_close(device, record.backing_id);
        return NULL;
    }
    entry->may_read = entry->is_kept = true;
    return entry;
}

/* Mappings change a file's attributes and tell nobody: the kernel is to ask. */
static void distrust_cached(int device, uint64_t nodeid)
{
    struct {
        struct out_header header;
        uint64_t nodeid;
        int64_t offset, length;
    } notice = {
        .header = {.len = sizeof(notice), .error = NOTIFY_INVAL_INODE},
        .nodeid = nodeid,
        .offset = -1, /* attributes only */
    };
    channel_write(device, &notice, sizeof(notice));
}

static enum verdict enter(int device, const struct in_header *request, struct opened *entry,
                          const struct stat *before)
{
    if (before && !events_may_note())
        return COLD;
    if (before && !opened_writers(entry))
        distrust_cached(device, request->nodeid);
    bool is_new = opened_enter(table, entry, before != NULL, request->pid, request->unique);
    if (before && is_new)
        events_add_stat(EVENT_OPENED, request->nodeid, before);
    struct open_out reply = {.fh = PASSING_HANDLE,
                             .open_flags = OPEN_PASSTHROUGH,
                             .backing_id = entry->record->backing_id};
    channel_reply(device, request->unique, 0, &reply, sizeof(reply));
    return ANSWERED;
}

/* Who reads what is open, or was so lately. */
static enum verdict answer_open(int fd, const struct in_header *request, const void *body,
                                size_t size)
{
    const struct open_in *wish = body;
    if (size < sizeof(*wish) || writes(wish->flags) || wish->flags & O_TRUNC)
        return COLD;
    struct opened *entry = find(request->nodeid);
    if (!entry || !entry->may_read || entry->is_inherited)
        return COLD;
    return enter(fd, request, entry, NULL);
}

/* Whether Python has to see to the last release: it knows whether the file still has a name, and
 * that of a removed one may take long. */
static bool is_left_to_python(const struct opened *entry)
{
    return entry->is_inherited || entry->record->kind == OPENED_CACHED ||
           (!entry->is_kept && entry->record->kind == OPENED_UPPER);
}

static void left(int device, struct opened *entry)
{
    struct opened *going = entry->is_kept ? opened_keep(table, entry) : entry;
    if (going)
        drop(device, going);
}

static enum verdict answer_release(int fd, const struct in_header *request, const void *body,
                                   size_t size)
{
    const struct release_in *wish = body;
    if (!table || size < sizeof(*wish) || wish->fh != PASSING_HANDLE)
        return COLD;
    struct opened *entry = find(request->nodeid);
    if (entry && opened_opens(entry)) {
        bool writing = writes(wish->flags);
        if (opened_opens(entry) == 1 && is_left_to_python(entry))
            return COLD;
        if (writing && !events_may_note())
            return COLD;
        bool is_new = opened_leave(table, entry, writing, request->unique);
        if (writing && is_new)
            events_add(&(struct hot_event){.nodeid = request->nodeid, .kind = EVENT_CLOSED});
        if (!opened_opens(entry))
            left(fd, entry);
    }
    channel_reply(fd, request->unique, 0, NULL, 0);
    return ANSWERED;
}

static void enter_new(int device, const struct in_header *request, struct opened *entry,
                      const struct stat *fresh, const struct entry_out *out)
{
    opened_enter(table, entry, fresh != NULL, request->pid, request->unique);
    if (fresh)
        events_add_stat(EVENT_OPENED, out->nodeid, fresh);
    struct create_out reply = {.entry = *out,
                               .open = {.fh = PASSING_HANDLE,
                                        .open_flags = OPEN_PASSTHROUGH,
                                        .backing_id = entry->record->backing_id}};
    channel_reply(device, request->unique, 0, &reply, sizeof(reply));
}

void passes_note_in(_Atomic uint64_t *record)
{
    in_hand = record;
}

uint64_t passes_summed(uint64_t unique, uint64_t first, uint64_t second, uint64_t state)
{
    uint64_t mixed = unique * UINT64_C(0x9E3779B97F4A7C15) + first * UINT64_C(0xC2B2AE3D27D4EB4F);
    mixed += second * UINT64_C(0x165667B19E3779F9) + state * UINT64_C(0xD6E8FEB86659FD93);
    return (mixed & ~UINT64_C(0xFF)) | state;
}

static void intend(uint64_t unique, uint64_t first, uint64_t second)
{
    if (!in_hand)
        return;
    in_hand[RECORD_UNIQUE] = unique;
    in_hand[RECORD_FIRST] = first;
    in_hand[RECORD_SECOND] = second;
    in_hand[RECORD_STATE] = passes_summed(unique, first, second, STATE_INTENDED);
}

static void settled(void)
{
    if (in_hand)
        in_hand[RECORD_STATE] = STATE_FREE;
}

static void forgotten(int device, uint64_t nodeid)
{
    struct opened *entry = find(nodeid);
    if (entry)
        drop(device, entry);
}

const struct hot_api hot_api = {
    .add = hot_register,
    .reply = channel_reply,
    .find = find,
    .is_without_opens = goes_without_opens,
    .takes_names = takes_names,
    .at_stop = at_stop,
    .passes = passes,
    .make = make,
    .enter = enter,
    .may_note = events_may_note,
    .note = events_note,
    .may_tell = events_may_tell,
    .tell = events_tell,
    .tell_forgotten = events_tell_forgotten,
    .may_end = events_may_end,
    .end = events_end,
    .enter_new = enter_new,
    .intend = intend,
    .settled = settled,
    .forgotten = forgotten,
};

bool passes_register(void)
{
    static bool is_done;
    if (!is_done)
        is_done = hot_register(OP_OPEN, answer_open) && hot_register(OP_RELEASE, answer_release);
    return is_done;
}
