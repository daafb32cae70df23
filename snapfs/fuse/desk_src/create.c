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

int creation_plan(Desk *desk, const struct in_header *request, const char *name, size_t length,
                  Creation *it)
{
    if (!is_own(request) || it->mode & special(it))
        return 0;
    desk_directory_up(desk, request->nodeid);
    if (!site_find(desk, request->nodeid, name, length, &it->site))
        return 0;
    const Card *parent = card_find(desk, request->nodeid);
    return !(it->site.before.st_mode & S_ISGID) && it->site.before.st_dev == desk->main_device &&
           !has_default_acl(parent);
}

static int make(Creation *it)
{
    int flags = it->access | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    it->file = -1;
    switch (it->mode & S_IFMT) {
    case S_IFDIR:
        return mkdirat(it->site.fd, it->site.path, it->mode & MODE_BITS) == 0;
    case S_IFLNK:
        return symlinkat(it->target, it->site.fd, it->site.path) == 0;
    default:
        it->file = openat(it->site.fd, it->site.path, flags, it->mode & MODE_BITS);
        return it->file >= 0;
    }
}

/* See what came of it, and undo what the process's own umask took away. */
static int settle(const Creation *it, struct stat *real)
{
    if (fstatat(it->site.fd, it->site.path, real, AT_SYMLINK_NOFOLLOW))
        return 0;
    if (S_ISLNK(it->mode) || (real->st_mode & MODE_BITS) == (it->mode & MODE_BITS))
        return 1;
    return !fchmodat(it->site.fd, it->site.path, it->mode & MODE_BITS, 0) &&
           !fstatat(it->site.fd, it->site.path, real, AT_SYMLINK_NOFOLLOW);
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
    unlinkat(it->site.fd, it->site.path, S_ISDIR(it->mode) ? AT_REMOVEDIR : 0);
    if (it->file >= 0)
        close(it->file);
}
