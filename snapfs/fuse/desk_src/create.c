/* New files, links and directories in those of the upper layer, where no rule gives them another owner,
 * mode or ACL than the file system does by itself. See desk.h and overlay/create.py.
 */
#define _GNU_SOURCE
#include "desk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_ACL "system.posix_acl_default"
#define MODE_BITS 07777
static int has_default_acl(const Card *directory)
{
    int error = card_attribute(directory, DEFAULT_ACL);
    return error != ENODATA && error != EOPNOTSUPP;
}

/* Whether a new file would be the caller's by itself. */
static int is_own(const struct in_header *request)
{
    return request->uid == geteuid() && request->gid == getegid();
}

/* Bits that a new file cannot have without rules. */
static mode_t special(const Creation *it)
{
    return S_ISDIR(it->mode) ? S_ISUID | S_ISGID : S_ISUID | S_ISGID | S_ISVTX;
}

int creation_plan(const Desk *desk, const struct in_header *request, const char *name, size_t length,
                  Creation *it)
{
    const Card *parent = card_find(desk, request->nodeid);
    if (!desk->takes_names || !parent || parent->type != S_IFDIR || !is_own(request))
        return 0;
    if (length > NAME_MAX || it->mode & special(it))
        return 0;
    if (parent->index && names->find(parent->index, name, length) >= 0)
        return 0;
    int used = snprintf(it->path, sizeof(it->path), "%s/%.*s", parent->path, (int)length, name);
    if (used >= (int)sizeof(it->path) || card_stat(parent, &it->before) != DONE_HERE)
        return 0;
    it->fd = parent->fd;
    return !(it->before.st_mode & S_ISGID) && it->before.st_dev == desk->main_device &&
           !has_default_acl(parent) && !is_protected(parent);
}

static int make(Creation *it)
{
    static const int flags = O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    it->file = -1;
    switch (it->mode & S_IFMT) {
    case S_IFDIR:
        return mkdirat(it->fd, it->path, it->mode & MODE_BITS) == 0;
    case S_IFLNK:
        return symlinkat(it->target, it->fd, it->path) == 0;
    default:
        it->file = openat(it->fd, it->path, flags, it->mode & MODE_BITS);
        return it->file >= 0;
    }
}

/* See what came of it, and undo what the process's own umask took away. */
static int settle(const Creation *it, struct stat *real)
{
    if (fstatat(it->fd, it->path, real, AT_SYMLINK_NOFOLLOW))
        return 0;
    if (S_ISLNK(it->mode) || (real->st_mode & MODE_BITS) == (it->mode & MODE_BITS))
        return 1;
    return !fchmodat(it->fd, it->path, it->mode & MODE_BITS, 0) &&
           !fstatat(it->fd, it->path, real, AT_SYMLINK_NOFOLLOW);
}

int creation_make(const Desk *desk, Creation *it)
{
    if (!make(it))
        return 0;
    it->nodeid = settle(it, &it->real) ? desk_number(desk, &it->real) : 0;
    if (it->nodeid && !names->has_node(desk->handed, it->nodeid))
        return 1;
    creation_undo(it);
    return 0;
}

void creation_undo(const Creation *it)
{
    unlinkat(it->fd, it->path, S_ISDIR(it->mode) ? AT_REMOVEDIR : 0);
    if (it->file >= 0)
        close(it->file);
}
