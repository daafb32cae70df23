#define _GNU_SOURCE
#include "opened.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x3473646900000000)
#define OLD_MAGIC UINT64_C(0x3373646973706e73) /* without the size; all sums begin with it */
#define RESEND (UINT64_C(1) << 63)         /* in `unique`: the request was sent before */
#define NO_REQUEST UINT64_C(1)             /* no request of the kernel's has this number */
#define RESERVED_BYTES (UINT64_C(1) << 30) /* of addresses; the file grows as it is needed */
#define GROWTH_BYTES (UINT64_C(64) * 1024)
#define MOST_SLOTS (RESERVED_BYTES / sizeof(struct opened_record))

static_assert(sizeof(struct opened_record) == 64, "one record");

#define MOST_OPENS (UINT32_MAX / 2) /* that are believed: one more must have room in its half */
#define DEATHS 4

/* The first record. `unique` is the last request that was counted; `slot` gets `counts` by it. */
struct header {
    uint64_t magic;  /* with how often the file has grown: who cuts it is found out */
    uint64_t unique; /* 0: none; set when the rest is whole */
    uint64_t slot;   /* 0: struck out since */
    uint64_t counts;
    uint64_t before[DEATHS]; /* what the processes before had counted last, the newest first: a request
                              * may not have come again by the time that the next one is killed */
};

static_assert(sizeof(struct header) == sizeof(struct opened_record), "the first record");

struct opened_table {
    int fd;
    void *memory;
    size_t slots; /* that the file has room for */
    uint32_t *free_slots;
    size_t free_count, free_room;
    struct opened **buckets;
    size_t bucket_count, count;
    struct opened *newest, *oldest;
    size_t idle_count, idle_kept;
    uint64_t total;
    size_t damaged;
};

/* Keep the compiler from moving stores: another process may find what is written at any point. */
static void settle(void)
{
    atomic_signal_fence(memory_order_seq_cst);
}

static struct header *header(const struct opened_table *table)
{
    return table->memory;
}

/* The first word of a file that has grown so often: that number, and what it is not. */
static uint64_t magic_of(uint64_t growths)
{
    return MAGIC | (~growths & 0xffff) << 16 | growths;
}

static void mark_size(const struct opened_table *table)
{
    settle();
    header(table)->magic = magic_of(table->slots * sizeof(struct opened_record) / GROWTH_BYTES);
    settle();
}

static struct opened_record *record_at(const struct opened_table *table, size_t slot)
{
    return (struct opened_record *)table->memory + slot;
}

static size_t slot_of(const struct opened_table *table, const struct opened *entry)
{
    return (size_t)(entry->record - record_at(table, 0));
}

static uint64_t mixed(uint64_t sum, uint64_t word)
{
    sum = (sum ^ word) * UINT64_C(0x9E3779B97F4A7C15);
    return sum ^ sum >> 29;
}

static uint64_t sum_of(const struct opened_record *record)
{
    uint64_t sum = mixed(mixed(mixed(OLD_MAGIC, record->nodeid), record->ino), record->device);
    return mixed(sum, (uint64_t)(uint32_t)record->backing_id << 32 | record->kind);
}

static uint64_t counts_sum_of(const struct opened_record *record)
{
    return mixed(mixed(OLD_MAGIC, record->nodeid), record->counts);
}

static void store_counts(struct opened_record *record, uint64_t counts)
{
    record->counts = counts;
    settle();
    record->counts_sum = counts_sum_of(record);
    settle();
}

/* Places for records */

static bool free_slot(struct opened_table *table, size_t slot)
{
    if (table->free_count == table->free_room) {
        size_t room = table->free_room ? table->free_room * 2 : 1024;
        uint32_t *moved = realloc(table->free_slots, room * sizeof(*moved));
        if (!moved)
            return false; /* the place is lost until the next process */
        table->free_slots = moved;
        table->free_room = room;
    }
    table->free_slots[table->free_count++] = (uint32_t)slot;
    return true;
}

static int grow(struct opened_table *table)
{
    size_t slots = table->slots + GROWTH_BYTES / sizeof(struct opened_record);
    if (slots > MOST_SLOTS)
        return ENOSPC;
    if (ftruncate(table->fd, (off_t)(slots * sizeof(struct opened_record))))
        return errno;
    for (size_t slot = slots; slot-- > table->slots;)
        if (slot && !free_slot(table, slot))
            break;
    table->slots = slots;
    mark_size(table); /* killed before, the file is bigger than it says */
    return 0;
}

/* Finding by node */

static size_t bucket_of(uint64_t nodeid, size_t count)
{
    return (size_t)((nodeid * UINT64_C(0x9E3779B97F4A7C15)) >> 32) & (count - 1);
}

static bool widen(struct opened_table *table)
{
    size_t count = table->bucket_count ? table->bucket_count * 2 : 1024;
    struct opened **buckets = calloc(count, sizeof(*buckets));
    if (!buckets)
        return false;
    for (size_t i = 0; i < table->bucket_count; i++)
        for (struct opened *entry = table->buckets[i], *next; entry; entry = next) {
            next = entry->next;
            struct opened **bucket = &buckets[bucket_of(entry->record->nodeid, count)];
            entry->next = *bucket;
            *bucket = entry;
        }
    free(table->buckets);
    table->buckets = buckets;
    table->bucket_count = count;
    return true;
}

struct opened *opened_find(const struct opened_table *table, uint64_t nodeid)
{
    struct opened *entry = table->buckets[bucket_of(nodeid, table->bucket_count)];
    while (entry && entry->record->nodeid != nodeid)
        entry = entry->next;
    return entry;
}

static struct opened *enter_record(struct opened_table *table, struct opened_record *record)
{
    if (table->count >= table->bucket_count)
        widen(table); /* short of memory: chains grow */
    struct opened *entry = calloc(1, sizeof(*entry));
    if (!entry)
        return NULL;
    entry->record = record;
    struct opened **bucket = &table->buckets[bucket_of(record->nodeid, table->bucket_count)];
    entry->next = *bucket;
    *bucket = entry;
    table->count++;
    table->total += opened_opens(entry);
    return entry;
}

/* Those without opens, by age */

static void idle_leave(struct opened_table *table, struct opened *entry)
{
    if (!entry->is_idle)
        return;
    *(entry->newer ? &entry->newer->older : &table->newest) = entry->older;
    *(entry->older ? &entry->older->newer : &table->oldest) = entry->newer;
    entry->newer = entry->older = NULL;
    entry->is_idle = false;
    table->idle_count--;
}

static void idle_enter(struct opened_table *table, struct opened *entry)
{
    idle_leave(table, entry);
    entry->older = table->newest;
    *(table->newest ? &table->newest->newer : &table->oldest) = entry;
    table->newest = entry;
    entry->is_idle = true;
    table->idle_count++;
}

struct opened *opened_keep(struct opened_table *table, struct opened *entry)
{
    entry->is_inherited = false;
    idle_enter(table, entry);
    return table->idle_count > table->idle_kept ? table->oldest : NULL;
}

/* Beginning with what was left */

/* Whether one request can have led from some counts to others. */
static bool is_one_step(uint64_t from, uint64_t to)
{
    int64_t opens = (int64_t)(uint32_t)to - (uint32_t)from;
    int64_t writers = (int64_t)(to >> 32) - (int64_t)(from >> 32);
    return opens >= -1 && opens <= 1 && writers >= -1 && writers <= 1;
}

/* Do again what a request that was counted last did: it may have been interrupted. */
static void redo(struct opened_table *table)
{
    struct header *last = header(table);
    if (last->unique && last->slot) {
        struct opened_record *record =
            last->slot < table->slots ? record_at(table, last->slot) : NULL;
        if (record && is_one_step(record->counts, last->counts)) {
            store_counts(record, last->counts);
        } else {
            table->damaged++;
            last->slot = 0;
            settle();
        }
    }
    if (last->unique && last->unique != last->before[0]) {
        for (size_t i = DEATHS; --i > 0;) {
            last->before[i] = last->before[i - 1];
            settle(); /* killed here, one is there twice and none is lost */
        }
        last->before[0] = last->unique;
        settle();
    }
}

/* Whether a record may be gone on with; strike it out if not. */
static bool is_sound(struct opened_table *table, struct opened_record *record)
{
    bool has_id = record->kind != OPENED_CACHED;
    if (record->kind > OPENED_CACHED || record->sum != sum_of(record) ||
        has_id != (record->backing_id > 0) || opened_find(table, record->nodeid)) {
        table->damaged++;
        record->kind = OPENED_NOT;
        return false;
    }
    if (record->counts_sum != counts_sum_of(record) ||
        record->counts >> 32 > (uint32_t)record->counts ||
        (uint32_t)record->counts > MOST_OPENS) {
        table->damaged++; /* as open: at worst its file is held until the kernel forgets the node */
        store_counts(record, record->kind == OPENED_UPPER ? UINT64_C(1) << 32 | 1 : 1);
    }
    return true;
}

static bool inherit(struct opened_table *table)
{
    for (size_t slot = table->slots; slot-- > 1;) {
        struct opened_record *record = record_at(table, slot);
        if (record->kind == OPENED_NOT || !is_sound(table, record)) {
            free_slot(table, slot);
            continue;
        }
        struct opened *entry = enter_record(table, record);
        if (!entry)
            return false;
        entry->is_inherited = true;
        if (!opened_opens(entry))
            idle_enter(table, entry);
    }
    return true;
}

/* Give what was cut the size of a whole table again: what is lost is not told by records. */
static bool mend_cut(struct opened_table *table, uint64_t size)
{
    uint64_t magic = header(table)->magic;
    uint64_t whole = (size + GROWTH_BYTES - 1) / GROWTH_BYTES * GROWTH_BYTES;
    uint64_t said = magic == OLD_MAGIC ? whole : (magic & 0xffff) * GROWTH_BYTES;
    if (whole < said)
        whole = said;
    if (whole == size || size > RESERVED_BYTES)
        return true;
    table->damaged = 1;
    table->slots = whole / sizeof(struct opened_record);
    return ftruncate(table->fd, (off_t)whole) == 0;
}

static bool has_magic(const struct opened_table *table)
{
    uint64_t magic = header(table)->magic, growths = magic & 0xffff;
    return magic == OLD_MAGIC ||
           (magic == magic_of(growths) && growths && growths <= RESERVED_BYTES / GROWTH_BYTES);
}

static bool map(struct opened_table *table)
{
    struct stat found;
    if (fstat(table->fd, &found))
        return false;
    table->memory =
        mmap(NULL, RESERVED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, table->fd, 0);
    if (table->memory == MAP_FAILED)
        return false;
    table->slots = (size_t)found.st_size / sizeof(struct opened_record);
    if (table->slots > MOST_SLOTS)
        table->slots = MOST_SLOTS;
    if (!table->slots || !has_magic(table)) {
        table->damaged = table->slots;
        table->slots = 0;
        int error = ftruncate(table->fd, 0) ? errno : grow(table);
        if (error) {
            errno = error;
            return false;
        }
        return true;
    }
    if (!mend_cut(table, (uint64_t)found.st_size))
        return false;
    mark_size(table);
    redo(table);
    return inherit(table);
}

struct opened_table *opened_begin(int journal_fd, size_t idle_kept)
{
    struct opened_table *table = calloc(1, sizeof(*table));
    if (!table)
        return NULL;
    table->fd = journal_fd;
    table->memory = MAP_FAILED;
    table->idle_kept = idle_kept;
    if (widen(table) && map(table))
        return table;
    int error = errno;
    opened_end(table);
    errno = error;
    return NULL;
}

void opened_end(struct opened_table *table)
{
    for (size_t i = 0; i < table->bucket_count; i++)
        for (struct opened *entry = table->buckets[i], *next; entry; entry = next) {
            next = entry->next;
            free(entry);
        }
    if (table->memory != MAP_FAILED)
        munmap(table->memory, RESERVED_BYTES);
    free(table->buckets);
    free(table->free_slots);
    free(table);
}

/* Changes */

struct opened *opened_add(struct opened_table *table, const struct opened_record *wanted)
{
    int error = table->free_count ? 0 : grow(table);
    if (error || !table->free_count) {
        errno = error ? error : ENOMEM;
        return NULL;
    }
    size_t slot = table->free_slots[--table->free_count];
    struct opened_record *record = record_at(table, slot), unborn = *wanted;
    unborn.counts = 0;
    unborn.sum = sum_of(&unborn);
    unborn.counts_sum = counts_sum_of(&unborn);
    unborn.kind = OPENED_NOT;
    *record = unborn;
    struct opened *entry = enter_record(table, record);
    if (!entry) {
        free_slot(table, slot);
        errno = ENOMEM;
        return NULL;
    }
    settle();
    record->kind = wanted->kind;
    return entry;
}

void opened_remove(struct opened_table *table, struct opened *entry)
{
    struct opened **link =
        &table->buckets[bucket_of(entry->record->nodeid, table->bucket_count)];
    while (*link != entry)
        link = &(*link)->next;
    *link = entry->next;
    idle_leave(table, entry);
    table->count--;
    table->total -= opened_opens(entry);
    if (header(table)->slot == slot_of(table, entry))
        header(table)->slot = 0;
    settle();
    entry->record->kind = OPENED_NOT;
    settle();
    free_slot(table, slot_of(table, entry));
    free(entry);
}

bool opened_is_counted(const struct opened_table *table, uint64_t unique)
{
    for (size_t i = 0; unique & RESEND && i < DEATHS; i++)
        if (header(table)->before[i] == (unique & ~RESEND))
            return true;
    return false;
}

static void set_counts(struct opened_table *table, struct opened *entry, uint64_t counts,
                       uint64_t unique)
{
    struct header *last = header(table);
    last->unique = 0;
    settle();
    last->slot = slot_of(table, entry);
    last->counts = counts;
    settle();
    last->unique = unique ? unique & ~RESEND : NO_REQUEST;
    settle();
    table->total += (uint32_t)counts - (uint64_t)opened_opens(entry);
    store_counts(entry->record, counts);
}

static void note_pid(struct opened *entry, uint32_t pid)
{
    for (int i = 0; i < entry->pid_count && i < OPENED_PIDS; i++)
        if (entry->pids[i] == pid)
            return;
    if (entry->pid_count < OPENED_PIDS)
        entry->pids[entry->pid_count] = pid;
    if (entry->pid_count <= OPENED_PIDS)
        entry->pid_count++;
}

bool opened_enter(struct opened_table *table, struct opened *entry, bool writing, uint32_t pid,
                  uint64_t unique)
{
    if (writing)
        note_pid(entry, pid);
    idle_leave(table, entry);
    if (opened_is_counted(table, unique))
        return false;
    uint64_t opens = (uint64_t)opened_opens(entry) + 1;
    uint64_t writers = (uint64_t)opened_writers(entry) + writing;
    set_counts(table, entry, writers << 32 | opens, unique);
    return true;
}

bool opened_leave(struct opened_table *table, struct opened *entry, bool writing, uint64_t unique)
{
    uint64_t opens = opened_opens(entry), writers = opened_writers(entry);
    if (!opens || opened_is_counted(table, unique))
        return false;
    opens--;
    writers -= writing && writers;
    if (writers > opens)
        writers = opens;
    set_counts(table, entry, writers << 32 | opens, unique);
    if (!writers)
        entry->pid_count = 0;
    return true;
}

size_t opened_count(const struct opened_table *table)
{
    return table->count;
}

size_t opened_damaged(const struct opened_table *table)
{
    return table->damaged;
}

uint64_t opened_total(const struct opened_table *table)
{
    return table->total;
}

struct opened *opened_each(const struct opened_table *table, const struct opened *last)
{
    if (last && last->next)
        return last->next;
    size_t at = last ? bucket_of(last->record->nodeid, table->bucket_count) + 1 : 0;
    for (; at < table->bucket_count; at++)
        if (table->buckets[at])
            return table->buckets[at];
    return NULL;
}

/* The device */

struct backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};

#define BACKING_OPEN _IOW(229, 1, struct backing_map)
#define BACKING_CLOSE _IOW(229, 2, uint32_t)

int backing_open(int device, int fd, int32_t *backing_id)
{
    struct backing_map wish = {.fd = fd};
    int found = ioctl(device, BACKING_OPEN, &wish);
    if (found <= 0)
        return found < 0 ? errno : EIO;
    *backing_id = found;
    return 0;
}

int backing_close(int device, int32_t backing_id)
{
    uint32_t id = (uint32_t)backing_id;
    return backing_id && ioctl(device, BACKING_CLOSE, &id) ? errno : 0;
}
