/* Copy-ups of regular files and symbolic links that have no rules and no node yet, in the fast lane. Whoever changes such a file
 * goes on with its copy. See desk.h, overlay/copyup.py.
 *
 * What has no node has its only name where the lower layers have it, and nobody has it open but who
 * reads it here, or past us if its data is left below. Only small files are copied, whose data is in
 * memory, links, which have none, and of any file its attributes, where the data is left below.
 *
 * Where data has to be written out before the copy is seen, that is begun before the copy gets all
 * else, and mostly done by then. What takes longer than SOON_NS is Python's, which lets a thread wait;
 * after a few such in a row so are those of a while: only this thread answers.
 */
#define _GNU_SOURCE
#include "../../overlay/copies_src/attributes.h"
#include "../../overlay/copies_src/copies.h"
#include "desk.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../channel_src/clock.h"
#include "desks.h"
#include "kept.h"
#include "writing.h"

#define MOST_COPIED (128u * 1024u) /* as copyup.QUICK_BYTES */
#define MOST_LEFT (256u << 20)     /* as metacopying.MOST_BYTES */
#define SOON_NS 500000
#define LATE_IN_A_ROW 3
#define LATE_FOR_NS 1000000000

const CopiesApi *copies;

typedef struct {
    Site site; /* of the copy; its directory is as it was */
    const char *name;
    size_t length;
    int is_link;
    int leaves_data; /* where it is; then only attributes are copied */
    char low[24]; /* its number, as the copy carries it */
    char temp[24];
    struct stat real;
} Copy;

static int may_copy_data(const Desk *desk, enum change change)
{
    if (change == ATTRIBUTES && desk->leaves_first)
        return 0;
    return desk->order == ORDER_NOTHING ||
           (desk->order == ORDER_WRITTEN && writing_is_free() && desk->copies_from_ns <= now_ns());
}

/* Where the copy of a file without a node belongs: in a directory of the upper layer, which is copied
 * up first if need be. */
static int find_site(Desk *desk, uint64_t ino, enum change change, Copy *it)
{
    Room *room;
    uint32_t slot;
    if (card_find(desk, ino) || !names->guest(desk->handed, ino, &room, &slot))
        return 0;
    const Entry *entry = &room->index->entries[slot];
    int kind = entry->kind & 0xf;
    it->is_link = kind == LINK;
    it->leaves_data = desk->leaves_data && change == ATTRIBUTES && !it->is_link;
    if ((kind != REGULAR && kind != LINK) ||
        (!it->is_link && !it->leaves_data && !may_copy_data(desk, change)))
        return 0;
    desk_directory_up(desk, room->ino);
    const Card *card = card_find(desk, room->ino);
    if (!card || card->type != S_IFDIR)
        return 0;
    it->name = room->index->names + entry->name;
    it->length = entry->length;
    it->site.fd = card->fd;
    it->site.parent = room->ino;
    int used = snprintf(it->site.path, sizeof(it->site.path), "%s/%s", card->path, it->name);
    return used < (int)sizeof(it->site.path) &&
           card_stat(card, &it->site.before) == DONE_HERE;
}

static int is_simple(const Lower *lower, const Copy *it)
{
    const struct statx *real = &lower->real;
    if (!S_ISREG(real->stx_mode) || real->stx_mode & SET_ID || real->stx_nlink != 1)
        return 0;
    if (real->stx_attributes & PROTECTING)
        return 0;
    if (real->stx_size > (it->leaves_data ? MOST_LEFT : MOST_COPIED))
        return 0;
    if (it->leaves_data && !real->stx_size)
        return 0;
    return !copies->has_name(lower->names, lower->names_bytes, METACOPY) &&
           !copies->has_name(lower->names, lower->names_bytes, PROTATTR);
}

/* Whether a copy may be seen; if not others are not tried for a while. */
static int is_in_order(Desk *desk, bool is_cloned)
{
    if (desk->order == ORDER_NOTHING || is_cloned)
        return 1;
    if (writing_ends_soon(SOON_NS)) {
        desk->late_copies = 0;
        return 1;
    }
    if (++desk->late_copies >= LATE_IN_A_ROW)
        desk->copies_from_ns = now_ns() + LATE_FOR_NS;
    return 0;
}

/* Make a copy aside. */
static int make_file(Desk *desk, const Lower *lower, Copy *it)
{
    bool is_cloned;
    const Wanted wanted = {.work = desk->keeps_in,
                           .name = it->temp,
                           .size_bytes = (off_t)lower->real.stx_size,
                           .written = desk->order == ORDER_NOTHING ? NULL : writing_begin,
                           .keeps_mtime = true,
                           .is_metacopy = it->leaves_data,
                           .ino = it->low,
                           .protattr = ""};
    int target = copies->copy(lower, lower, &wanted, &is_cloned);
    if (target < 0)
        return 0;
    int is_known = (it->leaves_data || !lower->real.stx_size || is_in_order(desk, is_cloned)) &&
                   fstat(target, &it->real) == 0;
    close(target);
    return is_known;
}

/* A clone of what is not on the disk would wait for that. */
static int is_at_hand(const Desk *desk, Lower *lower)
{
    return (desk->order == ORDER_NOTHING || copies->is_clean(lower->fd) > 0) &&
           copies->fetch(lower);
}

static int copy_file(Desk *desk, int at, const char *path, Copy *it)
{
    Lower lower;
    int is_made = !copies->open(&lower, at, path) && is_simple(&lower, it) &&
                  (it->leaves_data || is_at_hand(desk, &lower)) && make_file(desk, &lower, it);
    copies->close(&lower);
    return is_made;
}

/* A link without attributes, which only the overlay and root give it. */
static int copy_link(Desk *desk, int at, const char *path, Copy *it)
{
    char target[PATH_MAX], full[PATH_MAX];
    struct stat real;
    if (fstatat(at, path, &real, AT_SYMLINK_NOFOLLOW) || !S_ISLNK(real.st_mode) ||
        real.st_nlink != 1 || !say_path(full, at, path) || llistxattr(full, NULL, 0) > 0)
        return 0;
    ssize_t length = readlinkat(at, path, target, sizeof(target));
    if (length <= 0 || length == (ssize_t)sizeof(target))
        return 0;
    target[length] = 0;
    const struct timespec times[] = {real.st_atim, real.st_mtim};
    int work = desk->keeps_in;
    return !symlinkat(target, work, it->temp) &&
           !fchownat(work, it->temp, real.st_uid, real.st_gid, AT_SYMLINK_NOFOLLOW) &&
           say_path(full, work, it->temp) &&
           !lsetxattr(full, INO, it->low, strlen(it->low), 0) &&
           !utimensat(work, it->temp, times, AT_SYMLINK_NOFOLLOW) &&
           !fstatat(work, it->temp, &it->real, AT_SYMLINK_NOFOLLOW);
}

/* From the moment that the copy is seen the card leads there, not to the lower file. */
static int replace(Desk *desk, uint64_t ino, const Copy *it, const Data *data)
{
    if (!card_add(desk, ino, &it->site, &it->real, it->leaves_data ? data : NULL))
        return 0;
    if (directory_publish(desk, &it->site, it->temp))
        return 1;
    card_drop(desk, ino);
    return 0;
}

/* What is there of a copy that fails goes. */
static int copy(Desk *desk, uint64_t ino, Copy *it)
{
    static unsigned count;
    char path[PATH_MAX];
    int at;
    if (desk_path(desk, ino, path, &at) != DONE_HERE)
        return 0;
    snprintf(it->low, sizeof(it->low), "%" PRIu64, ino & LOW_MASK);
    snprintf(it->temp, sizeof(it->temp), "t.%x", ++count);
    const Data data = {at, path};
    if ((it->is_link ? copy_link : copy_file)(desk, at, path, it) &&
        replace(desk, ino, it, &data))
        return 1;
    unlinkat(desk->keeps_in, it->temp, 0);
    return 0;
}

/* Whether a file was opened past us, and how matters: who reads it there goes on with the lower one, as
 * long as the data is in that. */
static int is_in_the_way(const struct opened *entry, const Copy *it)
{
    return entry && !(it->leaves_data && entry->record->kind == OPENED_LOWER);
}

void desk_copy_up(Desk *desk, uint64_t ino, enum change change)
{
    Copy it;
    if (!desk->takes_names || desk->keeps_in < 0 || (ino & LOW_MASK) >> MAIN_BITS)
        return;
    struct opened *entry = hot->find(ino);
    if (!find_site(desk, ino, change, &it) || !hot->may_tell() || is_in_the_way(entry, &it) ||
        !copy(desk, ino, &it))
        return;
    if (entry)
        entry->may_read = entry->is_kept = false; /* who opens it from now on gets a whole copy */
    kept_drop(ino); /* who reads on reads the copy */
    hot->note(it.site.parent, &it.site.before);
    hot->tell(&(struct hot_event){.nodeid = ino,
                                  .ino = it.real.st_ino,
                                  .other = it.site.parent,
                                  .kind = it.leaves_data ? EVENT_LEFT_DATA : EVENT_COPIED,
                                  .mode = it.real.st_mode & S_IFMT,
                                  .name = it.name,
                                  .length = it.length});
}
