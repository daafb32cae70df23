/* Copy-ups of directories of lower layers that have a room, in the fast lane: owner, mode, times and
 * attributes, without their entries. See desk.h, overlay/copyup.py.
 *
 * A room is of a directory that was never changed, so it is called in the one above as its topmost lower
 * directory is. The room is closed before the copy is seen: from then on its names may be others.
 */
#define _GNU_SOURCE
#include "../../overlay/copies_src/attributes.h"
#include "../../overlay/copies_src/copies.h"
#include "desk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "desks.h"

#define MOST_ABOVE 32 /* that are copied up with one; more are left to Python */

extern const CopiesApi *copies;

typedef struct {
    Room *room;
    Site site; /* of the copy */
    const char *name;
    size_t length;
    char low[24]; /* its number, as the copy carries it */
    char temp[24];
    struct stat real;
} Rise;

/* What the topmost lower directory is called. */
static int find_name(Rise *it)
{
    const Spot *spot = &it->room->spots[0];
    if (!it->room->spot_count || !spot->length)
        return 0;
    size_t end = spot->length - 1, start = end;
    while (start && spot->prefix[start - 1] != '/')
        start--;
    it->name = spot->prefix + start;
    it->length = end - start;
    return it->length > 0;
}

static int find_site(const Desk *desk, Rise *it)
{
    Site *site = &it->site;
    const Card *above = card_find(desk, it->room->above);
    if (!above || above->type != S_IFDIR || !find_name(it))
        return 0;
    site->fd = above->fd;
    site->parent = above->ino;
    int used = snprintf(site->path, sizeof(site->path), "%s/%.*s", above->path,
                        (int)it->length, it->name);
    return used < (int)sizeof(site->path) && card_stat(above, &site->before) == DONE_HERE;
}

static int is_simple(const Lower *lower)
{
    return S_ISDIR(lower->real.stx_mode) && !(lower->real.stx_attributes & PROTECTING) &&
           !copies->has_name(lower->names, lower->names_bytes, PROTATTR);
}

/* Make the copy aside. */
static int make(const Desk *desk, const Lower *lower, Rise *it)
{
    const Wanted wanted = {.ino = it->low, .protattr = "", .keeps_mtime = true};
    if (mkdirat(desk->keeps_in, it->temp, 0700))
        return 0;
    int target = openat(desk->keeps_in, it->temp, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (target < 0)
        return 0;
    int is_made = !copies->dress(lower, target, &wanted) && !fstat(target, &it->real);
    close(target);
    return is_made;
}

static int copy(const Desk *desk, Rise *it)
{
    const Spot *spot = &it->room->spots[0];
    Lower lower;
    int is_made = !copies->open(&lower, spot->fd, spot->prefix) && is_simple(&lower) &&
                  make(desk, &lower, it);
    copies->close(&lower);
    return is_made;
}

static int mark(const Card *card, const struct stat *before)
{
    char path[PATH_MAX];
    if (!card_attribute(card, IMPURE))
        return 1;
    hot->note(card->ino, before);
    return say_path(path, card->fd, card->path) && !lsetxattr(path, IMPURE, "y", 1, 0);
}

int directory_publish(const Desk *desk, const Site *site, const char *temp)
{
    const Card *card = card_find(desk, site->parent);
    const struct timespec times[] = {site->before.st_atim, site->before.st_mtim};
    if (!mark(card, &site->before) ||
        renameat2(desk->keeps_in, temp, site->fd, site->path, RENAME_NOREPLACE))
        return 0;
    utimensat(card->fd, card->path, times, AT_SYMLINK_NOFOLLOW);
    return 1;
}

static int publish(Desk *desk, const Rise *it)
{
    names->close(desk->handed, it->room->ino);
    return directory_publish(desk, &it->site, it->temp);
}

static void tell(const Rise *it)
{
    hot->note(it->site.parent, &it->site.before);
    hot->tell(&(struct hot_event){.nodeid = it->room->ino,
                                  .ino = it->real.st_ino,
                                  .other = it->site.parent,
                                  .kind = EVENT_COPIED,
                                  .mode = S_IFDIR,
                                  .name = it->name,
                                  .length = it->length});
}

/* Copy one up whose directory is in the upper layer; 0 when that is Python's. */
static int rise(Desk *desk, Room *room)
{
    static unsigned count;
    Rise it = {.room = room};
    if ((room->ino & LOW_MASK) >> MAIN_BITS || !names->has_node(desk->handed, room->ino))
        return 0;
    if (!hot->may_tell() || !find_site(desk, &it))
        return 0;
    snprintf(it.low, sizeof(it.low), "%" PRIu64, room->ino & LOW_MASK);
    snprintf(it.temp, sizeof(it.temp), "t-%x", ++count);
    names->pin(room); /* it is closed on the way */
    int is_done = copy(desk, &it) && publish(desk, &it);
    if (is_done) {
        card_add_merged(desk, room, &it.site, &it.real);
        tell(&it);
    } else {
        unlinkat(desk->keeps_in, it.temp, AT_REMOVEDIR);
    }
    names->unpin(desk->handed, room);
    return is_done;
}

void desk_directory_up(Desk *desk, uint64_t ino)
{
    Room *rooms[MOST_ABOVE], *room;
    int count = 0;
    if (!hot->takes_names() || !desk->takes_names || desk->keeps_in < 0)
        return;
    while (!card_find(desk, ino)) {
        if (count == MOST_ABOVE || !(room = names->room(desk->handed, ino)))
            return;
        rooms[count++] = room;
        ino = room->above;
    }
    while (count && rise(desk, rooms[count - 1]))
        count--;
}
