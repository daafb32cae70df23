/* Copy-ups of files that have no rules and no node yet, in the fast lane. Whoever changes such a file
 * goes on with its copy. See desk.h, overlay/copyup.py.
 *
 * What has no node has its only name where the lower layers have it, and nobody has it open but who
 * reads it here. Only small files are copied, whose data is in memory and may be made durable later.
 */
#define _GNU_SOURCE
#include "../../overlay/copies_src/copies.h"
#include "desk.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "desks.h"
#include "kept.h"

#define REGULAR 8 /* S_IFREG >> 12 */
#define SET_ID (S_ISUID | S_ISGID)
#define MOST_COPIED (128u * 1024u)     /* as copyup.QUICK_BYTES */
#define MAIN_BITS 39                   /* of numbers that are the same at the next opening */
#define LOW_MASK ((UINT64_C(1) << 40) - 1)
#define PROTECTING (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND)
#define IMPURE "trusted.overlay.snapfs.impure"
#define METACOPY "trusted.overlay.metacopy"
#define PROTATTR "trusted.overlay.protattr"

const CopiesApi *copies;

typedef struct {
    Site site; /* of the copy; its directory is as it was */
    const char *name;
    size_t length;
    char temp[24];
    struct stat real;
} Copy;

/* Where the copy of a file without a node belongs: in a directory of the upper layer that may hold
 * copies. */
static int find_site(const Desk *desk, uint64_t ino, Copy *it)
{
    Room *room;
    uint32_t slot;
    if (card_find(desk, ino) || !names->guest(desk->handed, ino, &room, &slot))
        return 0;
    const Entry *entry = &room->index->entries[slot];
    const Card *card = card_find(desk, room->ino);
    if ((entry->kind & 0xf) != REGULAR || !card || card->type != S_IFDIR)
        return 0;
    it->name = room->index->names + entry->name;
    it->length = entry->length;
    it->site.fd = card->fd;
    it->site.parent = room->ino;
    int used = snprintf(it->site.path, sizeof(it->site.path), "%s/%s", card->path, it->name);
    return used < (int)sizeof(it->site.path) &&
           card_stat(card, &it->site.before) == DONE_HERE && !card_attribute(card, IMPURE);
}

static int is_simple(const Lower *lower)
{
    const struct statx *real = &lower->real;
    if (!S_ISREG(real->stx_mode) || real->stx_mode & SET_ID || real->stx_nlink != 1)
        return 0;
    if (real->stx_attributes & PROTECTING || real->stx_size > MOST_COPIED)
        return 0;
    return !copies->has_name(lower->names, lower->names_bytes, METACOPY) &&
           !copies->has_name(lower->names, lower->names_bytes, PROTATTR);
}

/* Make the copy aside; what is there of one that fails has to go. */
static int make(const Desk *desk, const Lower *lower, uint64_t ino, Copy *it)
{
    char low[24];
    bool is_cloned;
    snprintf(low, sizeof(low), "%" PRIu64, ino & LOW_MASK);
    const Wanted wanted = {.work = desk->keeps_in,
                           .name = it->temp,
                           .size_bytes = (off_t)lower->real.stx_size,
                           .keeps_mtime = true,
                           .ino = low,
                           .protattr = ""};
    int target = copies->copy(lower, lower, &wanted, &is_cloned);
    if (target < 0)
        return 0;
    int is_known = fstat(target, &it->real) == 0;
    close(target);
    return is_known;
}

/* Give the copy its name; its directory keeps its times. */
static int publish(const Desk *desk, const Copy *it)
{
    const Site *site = &it->site;
    const Card *card = card_find(desk, site->parent);
    const struct timespec times[] = {site->before.st_atim, site->before.st_mtim};
    if (renameat2(desk->keeps_in, it->temp, site->fd, site->path, RENAME_NOREPLACE))
        return 0;
    utimensat(card->fd, card->path, times, AT_SYMLINK_NOFOLLOW);
    return 1;
}

/* From the moment that the copy is seen the card leads there, not to the lower file. */
static int replace(Desk *desk, uint64_t ino, const Copy *it)
{
    if (!card_add(desk, ino, &it->site, &it->real))
        return 0;
    if (publish(desk, it))
        return 1;
    card_drop(desk, ino);
    return 0;
}

static int copy(Desk *desk, uint64_t ino, Copy *it)
{
    static unsigned count;
    char path[PATH_MAX];
    int at, is_done;
    Lower lower;
    if (desk_path(desk, ino, path, &at) != DONE_HERE)
        return 0;
    snprintf(it->temp, sizeof(it->temp), "t.%x", ++count);
    is_done = !copies->open(&lower, at, path) && is_simple(&lower) && copies->fetch(&lower);
    if (is_done && (!make(desk, &lower, ino, it) || !replace(desk, ino, it))) {
        unlinkat(desk->keeps_in, it->temp, 0);
        is_done = 0;
    }
    copies->close(&lower);
    return is_done;
}

void desk_copy_up(Desk *desk, uint64_t ino)
{
    Copy it;
    if (!desk->takes_names || desk->copies_wait || desk->keeps_in < 0 || (ino & LOW_MASK) >> MAIN_BITS)
        return;
    if (!find_site(desk, ino, &it) || !hot->may_tell() || hot->find(ino) || !copy(desk, ino, &it))
        return;
    kept_drop(ino); /* who reads on reads the copy */
    hot->note(it.site.parent, &it.site.before);
    hot->tell(&(struct hot_event){.nodeid = ino,
                                  .ino = it.real.st_ino,
                                  .other = it.site.parent,
                                  .kind = EVENT_COPIED,
                                  .mode = S_IFREG,
                                  .name = it.name,
                                  .length = it.length});
}
