/* What is open past us, counted where the next process finds it.
 *
 * One record for each node that is open, or whose backing id is kept for its next open, in a memfd
 * that is mapped here and outlives the process. Little-endian, 64 bytes each; the first is a header.
 * Both readers and writers of the counts are the session's thread: C in the fast lane, or Python.
 *
 * INVARIANT: a record is whole before its kind is set, and both counts are one word, so whoever is
 * killed anywhere leaves counts of before or after a request. INVARIANT: counts change before the
 * kernel is told, and which request changed them last is in the header: one that comes again
 * (RESEND) is not counted again. INVARIANT: a record has the sums of its parts; one that has others
 * is damaged, and is struck out, or counted as open when its counts are. An id that is not the
 * node's own would be another file's bytes.
 */
#ifndef SNAPFS_OPENED_H
#define SNAPFS_OPENED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum opened_kind {
    OPENED_NOT,
    OPENED_LOWER,  /* backed by a file of a committed layer: for reading only */
    OPENED_UPPER,  /* backed by a file of the snapshot's own layer */
    OPENED_CACHED, /* through the page cache and us; no backing id */
};

struct opened_record {
    uint64_t nodeid;
    uint64_t ino, device; /* of the file behind the id, which cannot become another's meanwhile */
    uint32_t kind;
    int32_t backing_id;
    uint64_t counts; /* opens, and in the upper half those of them that may write */
    uint64_t sum;        /* of all above but the counts */
    uint64_t counts_sum; /* of these; set after them, and again when the last request is redone */
    uint64_t told;       /* whom an open of it was refused just now (reopening.py), which sums it */
};

#define OPENED_PIDS 4

/* What this process knows besides. */
struct opened {
    struct opened *next;          /* of its bucket */
    struct opened *newer, *older; /* of those without opens, while is_idle */
    struct opened_record *record;
    bool is_idle;
    bool is_inherited; /* of an earlier process, and not used up since */
    bool may_read;     /* opens for reading may be answered in the fast lane */
    bool is_kept;      /* its id is worth keeping after the last release */
    uint8_t pid_count; /* more than OPENED_PIDS: not all are known */
    uint32_t pids[OPENED_PIDS]; /* who opened it for writing since nobody had it open so */
};

struct opened_table;

/* Begin with what a journal holds, or a new one. The descriptor stays the caller's. NULL with errno. */
struct opened_table *opened_begin(int journal_fd, size_t idle_kept);
void opened_end(struct opened_table *table);

struct opened *opened_find(const struct opened_table *table, uint64_t nodeid);

/* Make a record without opens. NULL with errno; there must be none of the node. */
struct opened *opened_add(struct opened_table *table, const struct opened_record *record);

/* Strike a record out; the id is the caller's to close. */
void opened_remove(struct opened_table *table, struct opened *entry);

/* Count one open or release, for the request `unique` (0: none that may come again). False when it was
 * counted before: the request comes again. */
bool opened_enter(struct opened_table *table, struct opened *entry, bool writing, uint32_t pid,
                  uint64_t unique);
bool opened_leave(struct opened_table *table, struct opened *entry, bool writing, uint64_t unique);

/* Whether a request comes again that an earlier process counted. */
bool opened_is_counted(const struct opened_table *table, uint64_t unique);

/* Keep one without opens for its next open; returns another one that is to go for it, or NULL. */
struct opened *opened_keep(struct opened_table *table, struct opened *entry);

static inline uint32_t opened_opens(const struct opened *entry)
{
    return (uint32_t)entry->record->counts;
}

static inline uint32_t opened_writers(const struct opened *entry)
{
    return (uint32_t)(entry->record->counts >> 32);
}

size_t opened_count(const struct opened_table *table);
size_t opened_damaged(const struct opened_table *table); /* records that were left and make no sense */
uint64_t opened_total(const struct opened_table *table); /* opens of all */

/* Go through all: NULL begins, and ends. Not while any is added or removed. */
struct opened *opened_each(const struct opened_table *table, const struct opened *last);

/* The device's own calls: 0 or an errno. */
int backing_open(int device, int fd, int32_t *backing_id);
int backing_close(int device, int32_t backing_id);

#endif
