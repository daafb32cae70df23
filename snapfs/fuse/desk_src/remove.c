/* Removal of names of upper files and directories that have no rules, and moves of such files. The kernel knows what it removes, so
 * that is kept in the work directory under its number until it is forgotten. See desk.h, overlay/remove.py and
 * overlay/renames.py.
 */
#define _GNU_SOURCE
#include "desk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define NAMES_BYTES 1024
#define LIST_BYTES 1024 /* of names of attributes; more is Python's */

int is_trusted(const char *name)
{
    static const char trusted[] = "trusted.";
    return strncmp(name, trusted, sizeof(trusted) - 1) == 0;
}

/* Whether there is no attribute that has rules: a number of its own, protection, data elsewhere. */
static int is_bare(int fd, const char *path)
{
    char full[PATH_MAX], list[LIST_BYTES];
    if (!say_path(full, fd, path))
        return 0;
    ssize_t length = llistxattr(full, list, sizeof(list));
    if (length < 0)
        return errno == EOPNOTSUPP;
    for (const char *name = list; name < list + length; name += strlen(name) + 1)
        if (is_trusted(name))
            return 0;
    return 1;
}

int is_plain(int fd, const char *path, const struct stat *real)
{
    if (!S_ISLNK(real->st_mode) && (!S_ISREG(real->st_mode) || real->st_mode & SET_ID))
        return 0;
    return is_bare(fd, path);
}

/* Whether the first names of a directory are but `.` and `..`. */
static int shows_nothing(const char *buffer, long length)
{
    const struct listed *entry;
    for (long at = 0; at < length; at += entry->length) {
        entry = (const struct listed *)(buffer + at);
        if (strcmp(entry->name, ".") && strcmp(entry->name, ".."))
            return 0;
    }
    return length > 0;
}

/* Whether there is nothing in a directory of the upper layer, whiteouts neither. */
static int is_empty(int fd, const char *path)
{
    _Alignas(struct listed) char buffer[NAMES_BYTES];
    int directory = openat(fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_NOATIME);
    if (directory < 0)
        return 0;
    int result = shows_nothing(buffer, syscall(SYS_getdents64, directory, buffer, sizeof(buffer)));
    close(directory);
    return result;
}

/* Whether a directory is the upper layer's alone, and empty. */
static int is_simple_directory(const Desk *desk, const Removal *it)
{
    const Card *card = card_find(desk, it->nodeid);
    struct stat real;
    return card && card->type == S_IFDIR && !card->index && card_stat(card, &real) == DONE_HERE &&
           real.st_ino == it->real.st_ino && is_bare(it->site.fd, it->site.path) &&
           is_empty(it->site.fd, it->site.path);
}

/* Whether a file's name can go: Python is to find the file by another one, or where it is kept. */
static int may_lose(const Desk *desk, const char *name, size_t length, Removal *it)
{
    if (!is_plain(it->site.fd, it->site.path, &it->real))
        return 0;
    if (it->real.st_nlink == 1)
        return 1;
    it->stays_in = card_other_name(desk, it->nodeid, it->site.parent, name, length);
    return it->stays_in != 0;
}

int site_find(const Desk *desk, uint64_t parent, const char *name, size_t length, Site *it)
{
    const Card *card = card_find(desk, parent);
    if (!desk->takes_names || !card)
        return 0;
    if (card->index && names->find(card->index, name, length) >= 0)
        return 0;
    return site_above(desk, parent, name, length, it);
}

int site_above(const Desk *desk, uint64_t parent, const char *name, size_t length, Site *it)
{
    const Card *card = card_find(desk, parent);
    if (!card || card->type != S_IFDIR || length > NAME_MAX)
        return 0;
    int used = snprintf(it->path, sizeof(it->path), "%s/%.*s", card->path, (int)length, name);
    it->fd = card->fd;
    it->parent = parent;
    return used < (int)sizeof(it->path) && card_stat(card, &it->before) == DONE_HERE &&
           !is_protected(desk, card);
}

int removal_plan(const Desk *desk, uint64_t parent, const char *name, size_t length,
                 int is_directory, Removal *it)
{
    const Site *site = &it->site;
    if (desk->keeps_in < 0 || !site_find(desk, parent, name, length, &it->site))
        return 0;
    if (fstatat(site->fd, site->path, &it->real, AT_SYMLINK_NOFOLLOW))
        return 0;
    it->nodeid = desk_number(desk, &it->real);
    it->stays_in = 0;
    if (!it->nodeid || !names->has_node(desk->handed, it->nodeid))
        return 0;
    return is_directory ? is_simple_directory(desk, it) : may_lose(desk, name, length, it);
}

void kept_name(const Desk *desk, uint64_t nodeid, char kept[KEPT_NAME])
{
    snprintf(kept, KEPT_NAME, "o%" PRIx64, nodeid ^ desk->handed->prefix);
}

/* Let the next worker look for a file where it keeps a name. */
static void note_other_name(const Desk *desk, const Removal *it)
{
    names->claim(desk->handed, it->nodeid, it->stays_in); /* it is claimed: says where it is */
}

int removal_make(const Desk *desk, const Removal *it)
{
    char kept[KEPT_NAME];
    if (it->stays_in) {
        note_other_name(desk, it);
        return unlinkat(it->site.fd, it->site.path, 0) == 0;
    }
    kept_name(desk, it->nodeid, kept);
    return renameat(it->site.fd, it->site.path, desk->keeps_in, kept) == 0;
}

int removal_end(const Desk *desk, uint64_t nodeid)
{
    char kept[KEPT_NAME];
    kept_name(desk, nodeid, kept);
    return unlinkat(desk->keeps_in, kept, 0) == 0;
}

int move_plan(const Desk *desk, const Names *n, Move *it)
{
    if (!removal_plan(desk, n->parent, n->name, n->length, 0, &it->node) || it->node.stays_in)
        return 0;
    if (!site_find(desk, n->new_parent, n->new_name, n->new_length, &it->target.site))
        return 0;
    const Site *site = &it->target.site;
    it->replaces = fstatat(site->fd, site->path, &it->target.real, AT_SYMLINK_NOFOLLOW) == 0;
    if (!it->replaces)
        return errno == ENOENT;
    return removal_plan(desk, n->new_parent, n->new_name, n->new_length, 0, &it->target) &&
           it->target.nodeid != it->node.nodeid;
}

int move_make(const Desk *desk, const Move *it)
{
    const Site *from = &it->node.site, *to = &it->target.site;
    char kept[KEPT_NAME];
    if (!it->replaces)
        return renameat2(from->fd, from->path, to->fd, to->path, RENAME_NOREPLACE) == 0;
    if (it->target.stays_in) {
        note_other_name(desk, &it->target);
        return renameat(from->fd, from->path, to->fd, to->path) == 0;
    }
    kept_name(desk, it->target.nodeid, kept);
    if (linkat(to->fd, to->path, desk->keeps_in, kept, 0))
        return 0;
    if (renameat(from->fd, from->path, to->fd, to->path) == 0)
        return 1;
    unlinkat(desk->keeps_in, kept, 0);
    return 0;
}
