/* Removal of names that lower layers have, in the fast lane: of lower files, which leave a whiteout that is
 * a link to the one that all share, and of directories of the upper layer in which nothing is shown. See
 * desk.h, overlay/remove.py.
 */
#define _GNU_SOURCE
#include "../../overlay/copies_src/attributes.h"
#include "desk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "desks.h"
#include "kept.h"

#define SHARED "w" /* work.py */
#define LIST_BYTES (64u * 1024u) /* of names in a directory; more is Python's */

_Alignas(struct listed) static char list[LIST_BYTES];

/* A directory that goes, and what is in it. */
typedef struct {
    Removal removal;
    const Index *index; /* of the names that it has below */
    int directory;
    size_t listed; /* bytes in `list` */
    int leaves_whiteout;
} Emptied;

/* The names that a directory has in lower layers. */
static const Index *index_of(const Desk *desk, uint64_t parent)
{
    const Card *card = card_find(desk, parent);
    const Room *room = card ? NULL : names->room(desk->handed, parent);
    if (card)
        return card->type == S_IFDIR ? card->index : NULL;
    return room ? room->index : NULL;
}

/* Number of a lower file of a directory whose one name this is as far as anybody knows, and where it
 * is; 0 when it is copied up, or Python has to say. */
static uint64_t find_lower(const Desk *desk, uint64_t parent, const char *name, size_t length,
                           char path[PATH_MAX], int *fd)
{
    const Index *index = index_of(desk, parent);
    int64_t slot = index ? names->find(index, name, length) : -1;
    if (slot < 0)
        return 0;
    const Entry *entry = &index->entries[slot];
    int kind = entry->kind & 0xf;
    uint64_t ino = desk->handed->prefix | entry->low;
    if ((kind != REGULAR && kind != LINK) || entry->low >> MAIN_BITS)
        return 0;
    const Card *card = card_find(desk, ino);
    Room *room;
    uint32_t known;
    if (card ? card->is_upper || card->parent != parent
             : !names->guest(desk->handed, ino, &room, &known) || room->ino != parent)
        return 0;
    return desk_path(desk, ino, path, fd) == DONE_HERE ? ino : 0;
}

/* Whether a lower file has one name and nothing that forbids to remove it. */
static int is_simple(const Desk *desk, int fd, const char *path)
{
    struct statx real;
    char full[PATH_MAX];
    int flags = AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC;
    if (statx(fd, path, flags, STATX_MODE | STATX_NLINK, &real) || real.stx_nlink != 1 ||
        real.stx_attributes & PROTECTING)
        return 0;
    if (!desk->handed->protects_below)
        return 1;
    return say_path(full, fd, path) && lgetxattr(full, PROTATTR, NULL, 0) < 0 && errno == ENODATA;
}

/* Nothing is told of a file without a node: its directory has changed. */
static void tell_hidden(uint64_t nodeid, const Site *site, const char *name, size_t length)
{
    hot->tell(&(struct hot_event){.nodeid = nodeid,
                                  .other = site->parent,
                                  .kind = EVENT_HIDDEN,
                                  .name = name,
                                  .length = length});
}

/* Make a whiteout of a name that is free in the upper layer. The first one, and the first after as many
 * as a file can have names, is Python's. */
static int put_whiteout(const Desk *desk, const Site *site)
{
    return linkat(desk->keeps_in, SHARED, site->fd, site->path, 0) == 0;
}

enum verdict hide_file(int fd, const struct in_header *request, Desk *desk, const char *name,
                       size_t length)
{
    char path[PATH_MAX];
    int at;
    Site site;
    uint64_t nodeid = find_lower(desk, request->nodeid, name, length, path, &at);
    if (!nodeid || !desk->takes_names || desk->keeps_in < 0 || is_open(nodeid) ||
        !is_simple(desk, at, path))
        return COLD;
    desk_directory_up(desk, request->nodeid);
    if (!site_above(desk, request->nodeid, name, length, &site) || !hot->may_tell())
        return COLD;
    hot->intend(request->unique, 0, 0);
    if (!put_whiteout(desk, &site)) {
        hot->settled();
        return COLD;
    }
    names->hide(desk->handed, nodeid);
    card_drop(desk, nodeid);
    kept_drop(nodeid);
    hot->forgotten(fd, nodeid);
    hot->note(request->nodeid, &site.before);
    if (names->has_node(desk->handed, nodeid))
        tell_hidden(nodeid, &site, name, length);
    hot->reply(fd, request->unique, 0, NULL, 0);
    hot->settled();
    return ANSWERED;
}

static const struct listed *listed_at(size_t at)
{
    return (const struct listed *)(list + at);
}

static int is_dot(const struct listed *entry)
{
    return !strcmp(entry->name, ".") || !strcmp(entry->name, "..");
}

/* Read all names; 0 when they are too many. */
static int read_names(Emptied *it)
{
    for (it->listed = 0;;) {
        long more = syscall(SYS_getdents64, it->directory, list + it->listed,
                            LIST_BYTES - it->listed);
        if (more <= 0)
            return more == 0;
        it->listed += (size_t)more;
    }
}

/* Inode number of the whiteout that others are links to; 0 when there is none. */
static uint64_t shared_whiteout(const Desk *desk, dev_t device)
{
    struct stat real;
    if (fstatat(desk->keeps_in, SHARED, &real, AT_SYMLINK_NOFOLLOW) || !S_ISCHR(real.st_mode) ||
        real.st_rdev || real.st_dev != device)
        return 0;
    return real.st_ino;
}

/* Whether there are but shared whiteouts, and one for each name below. */
static int shows_nothing(const Desk *desk, const Emptied *it)
{
    uint64_t shared = shared_whiteout(desk, it->removal.real.st_dev);
    uint32_t hidden = 0;
    for (size_t at = 0; at < it->listed; at += listed_at(at)->length) {
        const struct listed *entry = listed_at(at);
        if (is_dot(entry))
            continue;
        if (entry->ino != shared)
            return 0;
        hidden += it->index && names->find(it->index, entry->name, strlen(entry->name)) >= 0;
    }
    return !it->index || hidden == it->index->count;
}

/* Number that a directory carries, or that of its own; 0 when it has an attribute with other rules. */
static uint64_t number_of(const Desk *desk, const Removal *it)
{
    char full[PATH_MAX], text[LIST_BYTES / 64], low[24];
    if (!say_path(full, it->site.fd, it->site.path))
        return 0;
    ssize_t length = llistxattr(full, text, sizeof(text));
    int is_copy = 0;
    if (length < 0)
        return 0;
    for (const char *name = text; name < text + length; name += strlen(name) + 1) {
        is_copy |= !strcmp(name, INO);
        if (is_trusted(name) && strcmp(name, INO) && strcmp(name, IMPURE))
            return 0;
    }
    if (!is_copy)
        return desk_number(desk, &it->real);
    length = lgetxattr(full, INO, low, sizeof(low) - 1);
    if (length <= 0)
        return 0;
    low[length] = 0;
    uint64_t number = strtoull(low, NULL, 10);
    return number && !(number >> MAIN_BITS) ? desk->handed->prefix | number : 0;
}

/* Find what a directory of the upper layer is, which is to be known. */
static int find_directory(const Desk *desk, const char *name, size_t length, Emptied *it)
{
    Removal *removal = &it->removal;
    const Site *site = &removal->site;
    struct stat real;
    if (fstatat(site->fd, site->path, &removal->real, AT_SYMLINK_NOFOLLOW) ||
        !S_ISDIR(removal->real.st_mode) || !(removal->nodeid = number_of(desk, removal)))
        return 0;
    const Card *above = card_find(desk, site->parent);
    const Card *card = card_find(desk, removal->nodeid);
    if (!card || card->type != S_IFDIR || !names->has_node(desk->handed, removal->nodeid) ||
        card_stat(card, &real) != DONE_HERE || real.st_ino != removal->real.st_ino)
        return 0;
    it->index = card->index;
    it->leaves_whiteout = above->index && names->find(above->index, name, length) >= 0;
    return 1;
}

/* Let a directory and a whiteout take each other's place, and keep the directory; 0 when nothing was
 * done. A directory that a kill leaves under the first name is kept when the tree is opened (work.py). */
static int exchange(const Desk *desk, const Site *site, const char *kept)
{
    char temp[KEPT_NAME + 2];
    int work = desk->keeps_in;
    snprintf(temp, sizeof(temp), "tx%s", kept + 1);
    if (linkat(work, SHARED, work, temp, 0))
        return 0;
    if (renameat2(site->fd, site->path, work, temp, RENAME_EXCHANGE) == 0) {
        if (renameat(work, temp, work, kept) == 0)
            return 1;
        if (renameat2(site->fd, site->path, work, temp, RENAME_EXCHANGE))
            return 1; /* it is gone, and not kept */
    }
    unlinkat(work, temp, 0);
    return 0;
}

/* Keep a directory under its number; 0 when nothing was done. */
static int put_away(const Desk *desk, const Emptied *it)
{
    const Site *site = &it->removal.site;
    char kept[KEPT_NAME];
    kept_name(desk, it->removal.nodeid, kept);
    if (it->leaves_whiteout)
        return exchange(desk, site, kept);
    return renameat(site->fd, site->path, desk->keeps_in, kept) == 0;
}

/* What a removed directory hid is not looked for in it again. */
static void drop_whiteouts(const Emptied *it)
{
    for (size_t at = 0; at < it->listed; at += listed_at(at)->length)
        if (!is_dot(listed_at(at)))
            unlinkat(it->directory, listed_at(at)->name, 0);
}

/* Remove a directory that was opened; COLD when nothing was done. */
static enum verdict remove_opened(int fd, const struct in_header *request, const Desk *desk,
                                  const char *name, size_t length, const Emptied *it)
{
    const Removal *removal = &it->removal;
    hot->intend(request->unique, 0, 0);
    if (!put_away(desk, it)) {
        hot->settled();
        return COLD;
    }
    hot->note(request->nodeid, &removal->site.before);
    tell_removed(request->nodeid, removal, name, length);
    hot->reply(fd, request->unique, 0, NULL, 0);
    hot->settled();
    drop_whiteouts(it);
    return ANSWERED;
}

enum verdict hide_directory(int fd, const struct in_header *request, Desk *desk, const char *name,
                            size_t length)
{
    Emptied it = {.directory = -1};
    const Site *site = &it.removal.site;
    if (!desk->takes_names || desk->keeps_in < 0 || !hot->may_tell() ||
        !site_above(desk, request->nodeid, name, length, &it.removal.site) ||
        !find_directory(desk, name, length, &it))
        return COLD;
    int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_NOATIME;
    it.directory = openat(site->fd, site->path, flags);
    if (it.directory < 0)
        return COLD;
    enum verdict verdict = COLD;
    if (read_names(&it) && shows_nothing(desk, &it))
        verdict = remove_opened(fd, request, desk, name, length, &it);
    close(it.directory);
    return verdict;
}
