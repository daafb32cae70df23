/* Replies from indexes of lower directories. See desk.h. */
#define _GNU_SOURCE
#include "desk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#define DEVICE 2
#define DIRECTORY 4

static int raise_errno(int number)
{
    errno = number;
    PyErr_SetFromErrno(PyExc_OSError);
    return FAILED_HERE;
}

static void fill_attributes(struct attr_out *out, uint64_t ino, const struct stat *real)
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

/* Path of an entry of a room, relative to the descriptor of its layer. */
static int path_of(const Room *room, uint32_t slot, char *path, int *fd)
{
    const Entry *entry = &room->index->entries[slot];
    const Spot *spot = &room->spots[entry->position];
    if (spot->length + entry->length >= PATH_MAX)
        return 0;
    memcpy(path, spot->prefix, spot->length);
    memcpy(path + spot->length, room->index->names + entry->name, entry->length + 1);
    *fd = spot->fd;
    return 1;
}

/* Stat a file as the tree shows it; what other names of it did to the tree is Python's to know. */
static int stat_entry(const Desk *desk, const Room *room, uint32_t slot, struct stat *real)
{
    char path[PATH_MAX];
    int fd;
    if (!path_of(room, slot, path, &fd))
        return DECLINED;
    if (fstatat(fd, path, real, AT_SYMLINK_NOFOLLOW))
        return raise_errno(errno);
    return desk->handed->linked && real->st_nlink > 1 ? DECLINED : ANSWERED;
}

/* Fill in an entry of a room and count it, unless it is a directory or has a node. */
static int hand_entry(Desk *desk, Room *room, uint32_t slot, struct entry_out *out)
{
    const Entry *entry = &room->index->entries[slot];
    uint64_t ino = desk->handed->prefix | entry->low;
    struct stat real;
    int kind = entry->kind & 0xf;
    if (kind == DIRECTORY || kind == DEVICE) /* nlink and rdev have rules */
        return DECLINED;
    int has_node = names->has_node(desk->handed, ino);
    if (has_node)
        return has_node < 0 ? FAILED_HERE : DECLINED;
    int result = stat_entry(desk, room, slot, &real);
    if (result != ANSWERED)
        return result;
    *out = (struct entry_out){
        .nodeid = ino,
        .entry_valid = desk->valid,
        .attr_valid = desk->valid,
        .entry_valid_nsec = desk->valid_nsec,
        .attr_valid_nsec = desk->valid_nsec,
    };
    fill_attributes(&out->attr, ino, &real);
    return names->hand(desk->handed, room, slot) ? FAILED_HERE : ANSWERED;
}

int desk_lookup(Desk *desk, uint64_t parent, const char *name, size_t length, struct entry_out *out)
{
    Room *room = names->room(desk->handed, parent);
    if (!room || length > NAME_MAX)
        return DECLINED;
    int64_t slot = names->find(room->index, name, length);
    if (slot >= 0)
        return hand_entry(desk, room, (uint32_t)slot, out);
    if (!desk->absence)
        return raise_errno(ENOENT);
    *out = (struct entry_out){.entry_valid = desk->valid, .entry_valid_nsec = desk->valid_nsec};
    return ANSWERED;
}

int desk_getattr(Desk *desk, uint64_t ino, struct attr_out *out)
{
    Room *room;
    uint32_t slot;
    struct stat real;
    if (!names->guest(desk->handed, ino, &room, &slot))
        return DECLINED;
    int result = stat_entry(desk, room, slot, &real);
    if (result == ANSWERED)
        fill_attributes(out, ino, &real);
    return result;
}

int desk_path(Desk *desk, uint64_t ino, char *path, size_t size)
{
    Room *room;
    uint32_t slot;
    char rest[PATH_MAX];
    int fd;
    if (!names->guest(desk->handed, ino, &room, &slot) || !path_of(room, slot, rest, &fd))
        return DECLINED;
    int length = snprintf(path, size, "/proc/self/fd/%d/%s", fd, rest);
    return length > 0 && (size_t)length < size && (size_t)length < PATH_MAX ? ANSWERED : DECLINED;
}

/* Ask Python for an entry; DECLINED when there is none any more. */
static int ask_python(const Desk *desk, const Room *room, uint32_t slot, struct entry_out *out)
{
    const Entry *entry = &room->index->entries[slot];
    PyObject *reply =
        PyObject_CallFunction(desk->entry_of, "Oy#", room->directory,
                              room->index->names + entry->name, (Py_ssize_t)entry->length);
    if (!reply)
        return FAILED_HERE;
    int result = DECLINED;
    if (PyBytes_Check(reply) && PyBytes_GET_SIZE(reply) == (Py_ssize_t)sizeof(*out)) {
        memcpy(out, PyBytes_AS_STRING(reply), sizeof(*out));
        result = ANSWERED;
    } else if (reply != Py_None) {
        PyErr_SetString(PyExc_TypeError, "an entry is 128 bytes or None");
        result = FAILED_HERE;
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

static uint64_t number_of(PyObject *node)
{
    PyObject *number = PyObject_GetAttrString(node, "ino");
    uint64_t ino = number ? PyLong_AsUnsignedLongLong(number) : 0;
    Py_XDECREF(number);
    return ino;
}

/* `.` and `..`, to which the kernel takes no reference; returns 0 or FAILED_HERE. */
static int append_dots(struct page *page, const Room *room, uint64_t after)
{
    const struct entry_out nothing = {0};
    PyObject *parent = PyObject_GetAttrString(room->directory, "parent");
    if (!parent)
        return FAILED_HERE;
    uint64_t above = parent == Py_None ? room->ino : number_of(parent);
    Py_DECREF(parent);
    if (PyErr_Occurred())
        return FAILED_HERE;
    const struct dirent_out dots[] = {{room->ino, 1, 1, DIRECTORY}, {above, 2, 2, DIRECTORY}};
    for (uint64_t i = after; i < LAST_DOT; i++)
        if (page->used + record_size(page, 2) <= page->size)
            append(page, &nothing, &dots[i], "..");
    return 0;
}

/* Append one entry; returns ANSWERED, DECLINED when it is gone, or FAILED_HERE. */
static int append_entry(Desk *desk, Room *room, uint32_t slot, struct page *page)
{
    const Entry *entry = &room->index->entries[slot];
    struct entry_out out;
    struct dirent_out dirent = {.ino = desk->handed->prefix | entry->low,
                                .off = entry->key,
                                .namelen = entry->length,
                                .type = entry->kind & 0xf};
    if (page->plus) {
        int result = hand_entry(desk, room, slot, &out);
        if (result == DECLINED)
            result = ask_python(desk, room, slot, &out);
        if (result != ANSWERED)
            return result;
    }
    append(page, &out, &dirent, room->index->names + entry->name);
    return ANSWERED;
}

int desk_list(Desk *desk, uint64_t ino, uint64_t after, int plus, char *buffer, size_t size,
              size_t *used)
{
    struct page page = {.buffer = buffer, .size = size, .plus = plus};
    Room *room = names->room(desk->handed, ino);
    if (!room)
        return DECLINED;
    if (after < LAST_DOT && append_dots(&page, room, after))
        return FAILED_HERE;
    const Index *index = room->index;
    names->pin(room);
    int result = ANSWERED;
    for (uint32_t slot = names->above(index, after); slot < index->count; slot++) {
        if (page.used + record_size(&page, index->entries[slot].length) > size) {
            if (!page.used)
                result = raise_errno(EINVAL);
            break;
        }
        result = append_entry(desk, room, slot, &page);
        if (result == FAILED_HERE) {
            if (page.used) { /* these are counted: the error comes again with the next request */
                PyErr_Clear();
                result = ANSWERED;
            }
            break;
        }
        result = ANSWERED;
    }
    names->unpin(room);
    *used = page.used;
    return result;
}
