/* Pages of directories: of lower ones from their index, of upper ones from a listing. See desk.h. */
#define _GNU_SOURCE
#include "desk.h"

#include <errno.h>
#include <string.h>

#include "desks.h"

#define DIRECTORY 4

/* Ask Python for an entry; LEFT_TO_PYTHON when there is none any more. */
static int ask_python(const Desk *desk, PyObject *directory, const Index *index, uint32_t slot,
                      struct entry_out *out)
{
    const Entry *entry = &index->entries[slot];
    PyObject *reply = PyObject_CallFunction(desk->entry_of, "Oy#", directory,
                                            index->names + entry->name, (Py_ssize_t)entry->length);
    if (!reply)
        return FAILED_THERE;
    int result = LEFT_TO_PYTHON;
    if (PyBytes_Check(reply) && PyBytes_GET_SIZE(reply) == (Py_ssize_t)sizeof(*out)) {
        memcpy(out, PyBytes_AS_STRING(reply), sizeof(*out));
        result = DONE_HERE;
    } else if (reply != Py_None) {
        PyErr_SetString(PyExc_TypeError, "an entry is 128 bytes or None");
        result = FAILED_THERE;
    }
    Py_DECREF(reply);
    return result;
}

struct page {
    char *buffer;
    size_t size, used;
    int plus;           /* records have room for attributes */
    int has_attributes; /* ... and have them: the kernel is given the files */
    uint32_t names;
};

static struct page begin_page(const Wish *wish, char *buffer, size_t size)
{
    return (struct page){.buffer = buffer,
                         .size = size,
                         .plus = wish->plus,
                         .has_attributes = wish->plus && (!hot || lister_looks(wish->pid))};
}

static void end_page(const struct page *page, const Wish *wish)
{
    if (page->plus && !page->has_attributes)
        lister_given(wish->pid, wish->ino, page->names);
}

static size_t record_size(const struct page *page, size_t length)
{
    size_t head = page->plus ? sizeof(struct entry_out) : 0;
    return head + ((sizeof(struct dirent_out) + length + 7) & ~(size_t)7);
}

static int has_room(const struct page *page, size_t length)
{
    return page->used + record_size(page, length) <= page->size;
}

/* Append a record for which there is room. */
static void append(struct page *page, const struct entry_out *entry, const struct dirent_out *dirent,
                   const char *name)
{
    char *at = page->buffer + page->used;
    size_t size = record_size(page, dirent->namelen);
    memset(at + size - 8, 0, 8);
    if (page->plus) {
        memcpy(at, entry, sizeof(*entry));
        at += sizeof(*entry);
    }
    memcpy(at, dirent, sizeof(*dirent));
    memcpy(at + sizeof(*dirent), name, dirent->namelen);
    page->used += size;
}

/* `.` and `..`, to which the kernel takes no reference. */
static void append_dots(struct page *page, uint64_t ino, uint64_t above, uint64_t after)
{
    const struct entry_out nothing = {0};
    const struct dirent_out dots[] = {{ino, 1, 1, DIRECTORY}, {above, 2, 2, DIRECTORY}};
    for (uint64_t i = after; i < LAST_DOT; i++)
        if (has_room(page, 2))
            append(page, &nothing, &dots[i], "..");
}

static struct dirent_out dirent_of(const Desk *desk, const Entry *entry)
{
    return (struct dirent_out){.ino = desk->handed->prefix | entry->low,
                               .off = entry->key,
                               .namelen = entry->length,
                               .type = entry->kind & 0xf};
}

/* Append one entry, which need not be there any more. */
static int append_entry(Desk *desk, Room *room, uint32_t slot, int ask, struct page *page)
{
    const Entry *entry = &room->index->entries[slot];
    const struct dirent_out dirent = dirent_of(desk, entry);
    struct entry_out out = {0};
    if (page->has_attributes) {
        int result = ask ? desk_hand(desk, room, slot, &out) : desk_show(desk, room, slot, &out);
        if (result == LEFT_TO_PYTHON && ask)
            result = ask_python(desk, room->directory, room->index, slot, &out);
        if (result != DONE_HERE)
            return result;
    }
    append(page, &out, &dirent, room->index->names + entry->name);
    page->names++;
    return DONE_HERE;
}

/* Count what a page that was made without Python hands out; 0 when memory is short. */
static int hand_all(Desk *desk, Room *room, uint32_t from, uint32_t to)
{
    for (uint32_t slot = from; slot < to; slot++)
        if (!names->hand(desk->handed, room, slot)) {
            while (slot-- > from)
                names->forget(desk->handed, desk->handed->prefix | room->index->entries[slot].low,
                              1);
            return 0;
        }
    return 1;
}

/* Append what fits, up to the first error; returns the slot behind the last one. */
static uint32_t fill(Desk *desk, Room *room, uint32_t slot, int ask, struct page *page, int *result)
{
    const Index *index = room->index;
    for (; slot < index->count && has_room(page, index->entries[slot].length); slot++) {
        *result = append_entry(desk, room, slot, ask, page);
        if (*result < 0 || (*result == LEFT_TO_PYTHON && !ask))
            return slot;
    }
    *result = DONE_HERE;
    if (slot < index->count && !page->used)
        *result = -EINVAL;
    return slot;
}

int desk_list(Desk *desk, const Wish *wish, int ask, char *buffer, size_t size, size_t *used)
{
    struct page page = begin_page(wish, buffer, size);
    Room *room = names->room(desk->handed, wish->ino);
    int result;
    if (!room)
        return LEFT_TO_PYTHON;
    if (wish->after < LAST_DOT)
        append_dots(&page, room->ino, room->above, wish->after);
    names->pin(room); /* Python may close it */
    uint32_t first = names->above(room->index, wish->after);
    uint32_t end = fill(desk, room, first, ask, &page, &result);
    if (!ask && result < 0)
        result = LEFT_TO_PYTHON; /* which will see the same */
    if (page.has_attributes && !ask && result == DONE_HERE && !hand_all(desk, room, first, end))
        result = LEFT_TO_PYTHON;
    if (result < 0 && page.used) { /* these are counted: the error comes again with the next page */
        if (result == FAILED_THERE)
            PyErr_Clear();
        result = DONE_HERE;
    }
    names->unpin(desk->handed, room);
    if (result == DONE_HERE)
        end_page(&page, wish);
    *used = page.used;
    return result;
}

/* Fill in an entry of a directory of the upper layer whose node and place are known, uncounted. */
static int show_known(const Desk *desk, const Entry *entry, struct entry_out *out)
{
    uint64_t ino = desk->handed->prefix | entry->low;
    const Card *card = card_find(desk, ino);
    struct stat real;
    if (!card || !names->has_node(desk->handed, ino))
        return LEFT_TO_PYTHON;
    int result = desk_stat_noted(desk, card, &real);
    if (result != DONE_HERE || (real.st_mode & S_IFMT) >> 12 != (mode_t)(entry->kind & 0xf))
        return LEFT_TO_PYTHON;
    *out = (struct entry_out){.nodeid = ino,
                              .entry_valid = desk->valid,
                              .entry_valid_nsec = desk->valid_nsec};
    if (!desks_is_written(ino)) {
        out->attr_valid = desk->valid;
        out->attr_valid_nsec = desk->valid_nsec;
    }
    desk_say(&out->attr, ino, &real);
    return DONE_HERE;
}

/* Note where a listing ends. All names that were there when its reader began are in it. */
static void note_end(const Desk *desk, const Listing *it)
{
    Card *card = card_find(desk, it->ino);
    const Index *index = it->index;
    if (card && card->type == S_IFDIR)
        card->listed = index->count ? index->entries[index->count - 1].key : LAST_DOT;
}

int desk_list_ends(const Desk *desk, uint64_t ino, uint64_t after)
{
    Card *card = card_find(desk, ino);
    if (!card || card->type != S_IFDIR)
        return 0;
    if (after < LAST_DOT)
        card->listed = 0; /* who begins sees what is new */
    return card->listed && after >= card->listed;
}

int desk_list_known(Desk *desk, PyObject *directory, const Listing *it, struct known *known,
                    char *buffer, size_t size, size_t *used)
{
    struct page page = {.buffer = buffer, .size = size, .plus = 1, .has_attributes = 1};
    const Index *index = it->index;
    int result = DONE_HERE;
    if (it->after < LAST_DOT)
        append_dots(&page, it->ino, it->above, it->after);
    note_end(desk, it);
    uint32_t slot = names->above(index, it->after);
    for (; slot < index->count && has_room(&page, index->entries[slot].length); slot++) {
        const Entry *entry = &index->entries[slot];
        struct entry_out out;
        result = show_known(desk, entry, &out);
        if (result == DONE_HERE && known->count < KNOWN_ROOM)
            known->inos[known->count++] = out.nodeid;
        else
            result = ask_python(desk, directory, index, slot, &out);
        const struct dirent_out dirent = dirent_of(desk, entry);
        if (result == DONE_HERE)
            append(&page, &out, &dirent, index->names + entry->name);
        else if (result < 0)
            break;
    }
    *used = page.used;
    if (result < 0 && !page.used)
        return result;
    PyErr_Clear(); /* these are counted: the error comes again with the next page */
    return page.used || slot == index->count ? DONE_HERE : -EINVAL;
}
