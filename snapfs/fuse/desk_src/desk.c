/* Replies from indexes of lower directories. See desk.h. */
#define _GNU_SOURCE
#include "desk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define DEVICE 2
#define DIRECTORY 4
#define MAIN_BITS 39 /* identity._MAIN_BITS */
#define MAIN_MASK ((UINT64_C(1) << MAIN_BITS) - 1)

void desk_say(struct attr_out *out, uint64_t ino, const struct stat *real)
{
    *out = (struct attr_out){
        .ino = ino,
        .size = (uint64_t)real->st_size,
        .blocks = (uint64_t)real->st_blocks,
        .atime = (uint64_t)real->st_atim.tv_sec,
        .mtime = (uint64_t)real->st_mtim.tv_sec,
        .ctime = (uint64_t)real->st_ctim.tv_sec,
        .atimensec = (uint32_t)real->st_atim.tv_nsec,
        .mtimensec = (uint32_t)real->st_mtim.tv_nsec,
        .ctimensec = (uint32_t)real->st_ctim.tv_nsec,
        .mode = real->st_mode,
        .nlink = (uint32_t)real->st_nlink,
        .uid = real->st_uid,
        .gid = real->st_gid,
        .rdev = (uint32_t)real->st_rdev,
        .blksize = (uint32_t)real->st_blksize,
    };
}

uint64_t desk_number(const Desk *desk, const struct stat *real)
{
    uint64_t low = real->st_ino & MAIN_MASK;
    if (real->st_dev != desk->main_device || real->st_ino >> MAIN_BITS != desk->main_base || low < 2)
        return 0;
    return desk->handed->prefix | low;
}

static int path_of(const Room *room, uint32_t slot, char *path, int *fd)
{
    const Entry *entry = &room->index->entries[slot];
    const Spot *spot = &room->spots[entry->position];
    if (spot->length + entry->length >= PATH_MAX)
        return LEFT_TO_PYTHON;
    memcpy(path, spot->prefix, spot->length);
    memcpy(path + spot->length, room->index->names + entry->name, (size_t)entry->length + 1);
    *fd = spot->fd;
    return DONE_HERE;
}

/* Stat a file as the tree shows it; what other names of it did to the tree is Python's to know. */
static int stat_entry(const Desk *desk, const Room *room, uint32_t slot, struct stat *real)
{
    char path[PATH_MAX];
    int fd;
    if (!path_of(room, slot, path, &fd))
        return LEFT_TO_PYTHON;
    if (fstatat(fd, path, real, AT_SYMLINK_NOFOLLOW))
        return -errno;
    return desk->handed->linked && real->st_nlink > 1 ? LEFT_TO_PYTHON : DONE_HERE;
}

/* Fill in an entry of a room without counting it, unless it is a directory or has a node. */
static int show_entry(const Desk *desk, const Room *room, uint32_t slot, struct entry_out *out)
{
    const Entry *entry = &room->index->entries[slot];
    uint64_t ino = desk->handed->prefix | entry->low;
    struct stat real;
    int kind = entry->kind & 0xf;
    if (kind == DIRECTORY || kind == DEVICE) /* nlink and rdev have rules */
        return LEFT_TO_PYTHON;
    if (names->has_node(desk->handed, ino))
        return LEFT_TO_PYTHON;
    int result = stat_entry(desk, room, slot, &real);
    if (result != DONE_HERE)
        return result;
    *out = (struct entry_out){
        .nodeid = ino,
        .entry_valid = desk->valid,
        .attr_valid = desk->valid,
        .entry_valid_nsec = desk->valid_nsec,
        .attr_valid_nsec = desk->valid_nsec,
    };
    desk_say(&out->attr, ino, &real);
    return DONE_HERE;
}

static int hand_entry(Desk *desk, Room *room, uint32_t slot, struct entry_out *out)
{
    int result = show_entry(desk, room, slot, out);
    if (result == DONE_HERE && !names->hand(desk->handed, room, slot))
        return -ENOMEM;
    return result;
}

static int absent(const Desk *desk, struct entry_out *out)
{
    if (!desk->absence)
        return -ENOENT;
    *out = (struct entry_out){.entry_valid = desk->valid, .entry_valid_nsec = desk->valid_nsec};
    return DONE_HERE;
}

/* Whether a name is in a directory of the upper layer: neither there nor below, or hidden there. What
 * is there has a node or gets one, which is Python's. */
static int look_in_upper(const Desk *desk, const Card *card, const char *name, size_t length,
                         struct entry_out *out)
{
    struct stat real;
    char path[PATH_MAX];
    int used = snprintf(path, sizeof(path), "%s/%.*s", card->path, (int)length, name);
    if (used >= (int)sizeof(path) || card_stat(card, &real) != DONE_HERE)
        return LEFT_TO_PYTHON;
    if (fstatat(card->fd, path, &real, AT_SYMLINK_NOFOLLOW) == 0)
        return S_ISCHR(real.st_mode) && real.st_rdev == 0 ? absent(desk, out) : LEFT_TO_PYTHON;
    if (errno != ENOENT || (card->index && names->find(card->index, name, length) >= 0))
        return LEFT_TO_PYTHON;
    return absent(desk, out);
}

int desk_lookup(Desk *desk, uint64_t parent, const char *name, size_t length, struct entry_out *out)
{
    if (length > NAME_MAX)
        return LEFT_TO_PYTHON;
    const Card *card = card_find(desk, parent);
    if (card && card->is_directory)
        return look_in_upper(desk, card, name, length, out);
    Room *room = names->room(desk->handed, parent);
    if (!room)
        return LEFT_TO_PYTHON;
    int64_t slot = names->find(room->index, name, length);
    return slot < 0 ? absent(desk, out) : hand_entry(desk, room, (uint32_t)slot, out);
}

/* Path of a directory whose files are handed out: its topmost lower one. */
static int room_path(const Room *room, char *path, int *fd)
{
    const Spot *spot = &room->spots[0];
    if (spot->length >= PATH_MAX)
        return LEFT_TO_PYTHON;
    memcpy(path, spot->length ? spot->prefix : "./", spot->length ? spot->length : 2);
    path[spot->length ? spot->length - 1 : 1] = 0;
    *fd = spot->fd;
    return DONE_HERE;
}

/* A merged directory shows one link, as in overlayfs. */
static int stat_room(const Room *room, struct stat *real)
{
    char path[PATH_MAX];
    int fd;
    if (!room_path(room, path, &fd))
        return LEFT_TO_PYTHON;
    if (fstatat(fd, path, real, AT_SYMLINK_NOFOLLOW))
        return -errno;
    if (room->spot_count > 1)
        real->st_nlink = 1;
    return DONE_HERE;
}

/* Regular files with set-id bits may be watched (setid.py); those with several lower names have rules. */
static int stat_noted(const Desk *desk, const Card *card, struct stat *real)
{
    int result = card_stat(card, real);
    if (result != DONE_HERE)
        return result;
    if (card->index)
        real->st_nlink = 1; /* a merged directory, as in overlayfs */
    if (card->is_directory)
        return DONE_HERE;
    if (card->is_upper)
        return real->st_mode & (S_ISUID | S_ISGID) ? LEFT_TO_PYTHON : DONE_HERE;
    return desk->handed->linked && real->st_nlink > 1 ? LEFT_TO_PYTHON : DONE_HERE;
}

int desk_getattr(const Desk *desk, uint64_t ino, struct attr_out *out)
{
    Room *room;
    uint32_t slot;
    struct stat real;
    int result;
    const Card *card = card_find(desk, ino);
    if (card)
        result = stat_noted(desk, card, &real);
    else if (names->guest(desk->handed, ino, &room, &slot))
        result = stat_entry(desk, room, slot, &real);
    else if ((room = names->room(desk->handed, ino)))
        result = stat_room(room, &real);
    else
        return LEFT_TO_PYTHON;
    if (result == DONE_HERE)
        desk_say(out, ino, &real);
    return result;
}

static int card_path(const Card *card, char *path, int *fd)
{
    struct stat real;
    if (card_stat(card, &real) != DONE_HERE || strlen(card->path) >= PATH_MAX)
        return LEFT_TO_PYTHON;
    strcpy(path, card->path);
    *fd = card->fd;
    return DONE_HERE;
}

int desk_path(const Desk *desk, uint64_t ino, char *path, int *fd)
{
    Room *room;
    uint32_t slot;
    const Card *card = card_find(desk, ino);
    if (card)
        return card_path(card, path, fd);
    if (names->guest(desk->handed, ino, &room, &slot))
        return path_of(room, slot, path, fd);
    room = names->room(desk->handed, ino);
    return room ? room_path(room, path, fd) : LEFT_TO_PYTHON;
}

/* Ask Python for an entry; LEFT_TO_PYTHON when there is none any more. */
static int ask_python(const Desk *desk, const Room *room, uint32_t slot, struct entry_out *out)
{
    const Entry *entry = &room->index->entries[slot];
    PyObject *reply =
        PyObject_CallFunction(desk->entry_of, "Oy#", room->directory,
                              room->index->names + entry->name, (Py_ssize_t)entry->length);
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
    int plus;
};

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
static void append_dots(struct page *page, const Room *room, uint64_t after)
{
    const struct entry_out nothing = {0};
    const struct dirent_out dots[] = {{room->ino, 1, 1, DIRECTORY}, {room->above, 2, 2, DIRECTORY}};
    for (uint64_t i = after; i < LAST_DOT; i++)
        if (has_room(page, 2))
            append(page, &nothing, &dots[i], "..");
}

/* Append one entry, which need not be there any more. */
static int append_entry(Desk *desk, Room *room, uint32_t slot, int ask, struct page *page)
{
    const Entry *entry = &room->index->entries[slot];
    struct entry_out out;
    struct dirent_out dirent = {.ino = desk->handed->prefix | entry->low,
                                .off = entry->key,
                                .namelen = entry->length,
                                .type = entry->kind & 0xf};
    if (page->plus) {
        int result = ask ? hand_entry(desk, room, slot, &out) : show_entry(desk, room, slot, &out);
        if (result == LEFT_TO_PYTHON && ask)
            result = ask_python(desk, room, slot, &out);
        if (result != DONE_HERE)
            return result;
    }
    append(page, &out, &dirent, room->index->names + entry->name);
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

int desk_list(Desk *desk, uint64_t ino, uint64_t after, int plus, int ask, char *buffer,
              size_t size, size_t *used)
{
    struct page page = {.buffer = buffer, .size = size, .plus = plus};
    Room *room = names->room(desk->handed, ino);
    int result;
    if (!room)
        return LEFT_TO_PYTHON;
    if (after < LAST_DOT)
        append_dots(&page, room, after);
    names->pin(room); /* Python may close it */
    uint32_t first = names->above(room->index, after);
    uint32_t end = fill(desk, room, first, ask, &page, &result);
    if (!ask && result < 0)
        result = LEFT_TO_PYTHON; /* which will see the same */
    if (plus && !ask && result == DONE_HERE && !hand_all(desk, room, first, end))
        result = LEFT_TO_PYTHON;
    if (result < 0 && page.used) { /* these are counted: the error comes again with the next page */
        if (result == FAILED_THERE)
            PyErr_Clear();
        result = DONE_HERE;
    }
    names->unpin(desk->handed, room);
    *used = page.used;
    return result;
}
