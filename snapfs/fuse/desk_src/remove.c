/* Removal of names of upper files and directories that have no rules. The kernel knows what it removes, so
 * that is kept in the work directory under its number until it is forgotten. See desk.h and overlay/remove.py.
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

/* Whether a file carries nothing that has rules: a number of its own, protection, data elsewhere. */
static int is_plain(int fd, const char *path)
{
    static const char trusted[] = "trusted.";
    char full[PATH_MAX], list[LIST_BYTES];
    if (snprintf(full, sizeof(full), "/proc/self/fd/%d/%s", fd, path) >= (int)sizeof(full))
        return 0;
    ssize_t length = llistxattr(full, list, sizeof(list));
    if (length < 0)
        return errno == EOPNOTSUPP;
    for (const char *name = list; name < list + length; name += strlen(name) + 1)
        if (strncmp(name, trusted, sizeof(trusted) - 1) == 0)
            return 0;
    return 1;
}

/* Whether a file has no other name, and nothing watches it. */
static int is_simple(const struct stat *real)
{
    return real->st_nlink == 1 && (S_ISLNK(real->st_mode) ||
                                   (S_ISREG(real->st_mode) && !(real->st_mode & (S_ISUID | S_ISGID))));
}

struct dirent64 {
    uint64_t ino;
    int64_t off;
    uint16_t length;
    uint8_t type;
    char name[];
};

/* Whether the first names of a directory are but `.` and `..`. */
static int shows_nothing(const char *buffer, long length)
{
    const struct dirent64 *entry;
    for (long at = 0; at < length; at += entry->length) {
        entry = (const struct dirent64 *)(buffer + at);
        if (strcmp(entry->name, ".") && strcmp(entry->name, ".."))
            return 0;
    }
    return length > 0;
}

/* Whether there is nothing in a directory of the upper layer, whiteouts neither. */
static int is_empty(int fd, const char *path)
{
    _Alignas(struct dirent64) char buffer[NAMES_BYTES];
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
           real.st_ino == it->real.st_ino && is_empty(it->fd, it->path);
}

int removal_plan(const Desk *desk, uint64_t parent, const char *name, size_t length,
                 int is_directory, Removal *it)
{
    const Card *card = card_find(desk, parent);
    if (!desk->takes_names || desk->keeps_in < 0 || !card || card->type != S_IFDIR || length > NAME_MAX)
        return 0;
    if (card->index && names->find(card->index, name, length) >= 0)
        return 0;
    int used = snprintf(it->path, sizeof(it->path), "%s/%.*s", card->path, (int)length, name);
    if (used >= (int)sizeof(it->path) || card_stat(card, &it->before) != DONE_HERE)
        return 0;
    it->fd = card->fd;
    if (fstatat(it->fd, it->path, &it->real, AT_SYMLINK_NOFOLLOW))
        return 0;
    it->nodeid = desk_number(desk, &it->real);
    if (!it->nodeid || !names->has_node(desk->handed, it->nodeid) || is_protected(card))
        return 0;
    return is_plain(it->fd, it->path) &&
           (is_directory ? is_simple_directory(desk, it) : is_simple(&it->real));
}

int removal_make(const Desk *desk, const Removal *it)
{
    char kept[24];
    snprintf(kept, sizeof(kept), "o%" PRIx64, it->nodeid ^ desk->handed->prefix);
    return renameat(it->fd, it->path, desk->keeps_in, kept) == 0;
}
