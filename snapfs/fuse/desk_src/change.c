/* Changes of the attributes of files, links and directories in the upper layer that have no rules:
 * owner, mode and times, in this order; and extended attributes. See desk.h.
 */
#define _GNU_SOURCE
#include "desk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum {
    FATTR_MODE = 1 << 0,
    FATTR_UID = 1 << 1,
    FATTR_GID = 1 << 2,
    FATTR_SIZE = 1 << 3,
    FATTR_ATIME = 1 << 4,
    FATTR_MTIME = 1 << 5,
    FATTR_ATIME_NOW = 1 << 7,
    FATTR_MTIME_NOW = 1 << 8,
};

/* A time to set, or one of those that utimensat(2) has a word for. */
static struct timespec wanted_time(uint32_t valid, uint32_t bit, uint32_t now_bit, uint64_t seconds,
                                   uint32_t nanoseconds)
{
    struct timespec time = {.tv_nsec = UTIME_OMIT};
    if (valid & now_bit)
        time.tv_nsec = UTIME_NOW;
    else if (valid & bit)
        time = (struct timespec){.tv_sec = (time_t)seconds, .tv_nsec = nanoseconds};
    return time;
}

static int set_times(const Card *card, const struct setattr_in *wish)
{
    const struct timespec times[] = {
        wanted_time(wish->valid, FATTR_ATIME, FATTR_ATIME_NOW, wish->atime, wish->atimensec),
        wanted_time(wish->valid, FATTR_MTIME, FATTR_MTIME_NOW, wish->mtime, wish->mtimensec),
    };
    if (!(wish->valid & (FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW)))
        return 0;
    return utimensat(card->fd, card->path, times, AT_SYMLINK_NOFOLLOW);
}

static int set_owner(const Card *card, const struct setattr_in *wish)
{
    uid_t uid = wish->valid & FATTR_UID ? wish->uid : (uid_t)-1;
    gid_t gid = wish->valid & FATTR_GID ? wish->gid : (gid_t)-1;
    if (!(wish->valid & (FATTR_UID | FATTR_GID)))
        return 0;
    return fchownat(card->fd, card->path, uid, gid, AT_SYMLINK_NOFOLLOW);
}

static int set_mode(const Card *card, const struct setattr_in *wish)
{
    if (!(wish->valid & FATTR_MODE))
        return 0;
    return fchmodat(card->fd, card->path, wish->mode & 07777, 0);
}

/* Whether a file may be changed as it is now, without rules; stats it. */
static int may_change(const Desk *desk, const Card *card, struct stat *before)
{
    if (!desk->takes_writers || !card || !card->is_upper)
        return 0;
    if (card_stat(card, before) != DONE_HERE || before->st_mode & SET_ID)
        return 0;
    return !is_protected(desk, card);
}

int change_is_simple(const struct setattr_in *wish)
{
    return !(wish->valid & FATTR_SIZE) && !(wish->valid & FATTR_MODE && wish->mode & SET_ID);
}

int desk_change(const Desk *desk, uint64_t ino, const struct setattr_in *wish, struct stat *before,
                struct stat *after)
{
    const Card *card = card_find(desk, ino);
    if (!may_change(desk, card, before) || (card->type == S_IFLNK && wish->valid & FATTR_MODE))
        return LEFT_TO_PYTHON; /* a link has no mode */
    if (set_owner(card, wish) || set_mode(card, wish) || set_times(card, wish))
        return -errno;
    if (card_stat(card, after) != DONE_HERE)
        return LEFT_TO_PYTHON;
    if (card->index)
        after->st_nlink = 1; /* a merged directory, as in overlayfs */
    if (card->data)
        after->st_blocks = (blkcnt_t)card->blocks;
    return DONE_HERE;
}

/* Users' own, and what says no more than a mode does or who else may what. A default ACL is what new
 * files begin with, which Python keeps; all others give rights or are an overlay's. */
int attribute_is_simple(const char *name)
{
    static const char user[] = "user.";
    return !strncmp(name, user, sizeof(user) - 1) || !strcmp(name, "system.posix_acl_access");
}

int desk_set_attribute(const Desk *desk, uint64_t ino, const char *name, const void *value,
                       size_t size, struct stat *before)
{
    const Card *card = card_find(desk, ino);
    char path[PATH_MAX];
    if (!may_change(desk, card, before) || card->type == S_IFLNK ||
        !say_path(path, card->fd, card->path))
        return LEFT_TO_PYTHON;
    return lsetxattr(path, name, value, size, 0) ? LEFT_TO_PYTHON : DONE_HERE; /* which sees why */
}
