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
#define MOST_SEARCHED 1024 /* entries, one after the other */
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

int desk_show(const Desk *desk, const Room *room, uint32_t slot, struct entry_out *out)
{
    const Entry *entry = &room->index->entries[slot];
    uint64_t ino = desk->handed->prefix | entry->low;
    struct stat real;
    int kind = entry->kind & 0xf;
    if (kind == DIRECTORY || kind == DEVICE) /* nlink and rdev have rules */
        return LEFT_TO_PYTHON;
    if (!names->may_hand(desk->handed, ino))
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

int desk_hand(Desk *desk, Room *room, uint32_t slot, struct entry_out *out)
{
    int result = desk_show(desk, room, slot, out);
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
    if (card && card->type == S_IFDIR)
        return look_in_upper(desk, card, name, length, out);
    Room *room = names->room(desk->handed, parent);
    if (!room)
        return LEFT_TO_PYTHON;
    int64_t slot = names->find(room->index, name, length);
    return slot < 0 ? absent(desk, out) : desk_hand(desk, room, (uint32_t)slot, out);
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
int desk_stat_noted(const Desk *desk, const Card *card, struct stat *real)
{
    int result = card_stat(card, real);
    if (result != DONE_HERE)
        return result;
    if (card->index)
        real->st_nlink = 1; /* a merged directory, as in overlayfs */
    if (card->type == S_IFDIR)
        return DONE_HERE;
    if (card->data)
        real->st_blocks = (blkcnt_t)card->blocks;
    if (card->is_upper)
        return real->st_mode & SET_ID ? LEFT_TO_PYTHON : DONE_HERE;
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
        result = desk_stat_noted(desk, card, &real);
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

int desk_child_path(const Desk *desk, uint64_t ino, char *path, int *fd)
{
    const Room *room = names->room(desk->handed, names->parent(desk->handed, ino));
    uint64_t low = ino ^ desk->handed->prefix;
    if (!room || room->index->count > MOST_SEARCHED)
        return LEFT_TO_PYTHON;
    for (uint32_t slot = 0; slot < room->index->count; slot++) {
        const Entry *entry = &room->index->entries[slot];
        if (entry->low == low && (entry->kind & 0xf) == DIRECTORY)
            return path_of(room, slot, path, fd);
    }
    return LEFT_TO_PYTHON;
}
