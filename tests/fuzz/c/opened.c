/* What a dead worker left of its opens, and a worker that goes on with it; for libFuzzer.
 *
 * The input is the number of records, for each 64 bytes and what of it is mended, then requests.
 * No fuzzer guesses a sum, so most records get theirs. What a process leaves is then the next one's:
 * it must find what this one had.
 */
#include "target.h"

/* Address space is what each input costs: the sanitizer marks all that is mapped. */
#define MAPPED_BYTES ((size_t)1 << 20)
#define mmap(address, length, ...) (mmap)(address, MAPPED_BYTES, __VA_ARGS__)
#define munmap(address, length) (munmap)(address, MAPPED_BYTES)

#include "../../../snapfs/fuse/channel_src/opened.c"

#define MOST_RECORDS 16
#define NODES 8 /* that requests are about, beside those that were left */

enum mending { MEND_NODE = 1, MEND_SUM = 2, MEND_COUNTS = 4 };

static size_t make(struct input *input, struct opened_record *records)
{
    uint8_t first = next(input);
    size_t count = 1 + first % MOST_RECORDS;
    memset(records, 0, count * sizeof(*records));
    take(input, &records[0], sizeof(*records));
    uint64_t *magic = &((struct header *)records)->magic;
    if (first < 0xF0)
        *magic = first & 0x10 ? OLD_MAGIC : magic_of(first & 0x20 ? 2 : 1);
    else if (*magic & 0xFFF0)
        *magic = 0; /* no more than is mapped */
    for (size_t slot = 1; slot < count; slot++) {
        struct opened_record *record = &records[slot];
        uint8_t mended = next(input);
        take(input, record, sizeof(*record));
        if (mended & MEND_NODE) {
            record->nodeid %= 2 * MOST_RECORDS;
            record->kind %= 4;
            record->backing_id = record->kind == OPENED_CACHED ? 0 : record->backing_id & 0xFFFF;
        }
        if (mended & MEND_SUM)
            record->sum = sum_of(record);
        if (mended & MEND_COUNTS)
            record->counts_sum = counts_sum_of(record);
    }
    return count;
}

static struct opened *nth(const struct opened_table *table, size_t wanted)
{
    struct opened *entry = opened_each(table, NULL);
    for (size_t n = wanted % table->count; n > 0; n--)
        entry = opened_each(table, entry);
    return entry;
}

static void request(struct opened_table *table, struct input *input)
{
    uint8_t what = next(input), which = next(input);
    struct opened *entry = table->count ? nth(table, which) : NULL;
    uint64_t unique = (uint64_t)next(input) << 1 | (what & 0x80 ? RESEND : 0);
    bool writing = what & 0x40;
    if (what % 8 == 0 || !entry) {
        struct opened_record wanted = {.nodeid = which % NODES, .kind = 1 + what / 8 % 3};
        wanted.backing_id = wanted.kind == OPENED_CACHED ? 0 : 1 + which;
        if (!opened_find(table, wanted.nodeid))
            require(opened_add(table, &wanted));
    } else if (what % 8 < 4) {
        opened_enter(table, entry, writing, which, unique);
    } else if (what % 8 < 6) {
        opened_leave(table, entry, writing, unique);
    } else if (what % 8 == 6) {
        struct opened *going = opened_opens(entry) ? NULL : opened_keep(table, entry);
        if (going)
            opened_remove(table, going);
    } else {
        opened_remove(table, entry);
    }
}

static void check(const struct opened_table *table)
{
    size_t count = 0;
    uint64_t opens = 0;
    for (struct opened *it = NULL; (it = opened_each(table, it));) {
        const struct opened_record *record = it->record;
        require(record->kind >= OPENED_LOWER && record->kind <= OPENED_CACHED);
        require((record->kind != OPENED_CACHED) == (record->backing_id > 0));
        require(opened_writers(it) <= opened_opens(it));
        require(opened_find(table, record->nodeid) == it);
        count++;
        opens += opened_opens(it);
    }
    require(count == opened_count(table));
    require(opens == opened_total(table));
}

static void check_next(const struct opened_table *table, int fd)
{
    struct opened_table *again = opened_begin(fd, 4);
    require(again);
    require(!opened_damaged(again));
    require(opened_count(again) == opened_count(table));
    for (struct opened *it = NULL; (it = opened_each(table, it));) {
        const struct opened *same = opened_find(again, it->record->nodeid);
        require(same && same->is_inherited);
        require(same->record->counts == it->record->counts);
        require(same->record->backing_id == it->record->backing_id);
    }
    check(again);
    opened_end(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct opened_record records[1 + MOST_RECORDS];
    size_t count = make(&input, records);
    int fd = left(records, count * sizeof(*records));
    if (size % 8) /* else it was cut, too */
        require(!ftruncate(fd, GROWTH_BYTES));
    struct opened_table *table = opened_begin(fd, 4);
    require(table);
    check(table);
    while (input.size)
        request(table, &input);
    check(table);
    check_next(table, fd);
    opened_end(table);
    close(fd);
    return 0;
}
