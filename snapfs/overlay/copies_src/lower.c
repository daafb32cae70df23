/* A regular file of a lower layer and its copy, by system calls alone. */
#include "copies.h"
#include "attributes.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define CARRIED (FS_SYNC_FL | FS_NOATIME_FL) /* overlayfs, OVL_COPY_FS_FLAGS_MASK */
#define FEW_BYTES 512
#define MOST_BYTES 65536 /* of names: the most that Linux gives */

static int list_names(Lower *self)
{
    char few[FEW_BYTES];
    ssize_t size = flistxattr(self->fd, few, sizeof few);
    if (size < 0 && errno == ERANGE) {
        self->names = malloc(MOST_BYTES);
        if (!self->names) {
            errno = ENOMEM;
            return -1;
        }
        size = flistxattr(self->fd, self->names, MOST_BYTES);
    } else if (size > 0) {
        self->names = malloc((size_t)size);
        if (!self->names) {
            errno = ENOMEM;
            return -1;
        }
        memcpy(self->names, few, (size_t)size);
    }
    if (size < 0 && errno != EOPNOTSUPP && errno != ENODATA)
        return -1;
    self->names_bytes = size < 0 ? 0 : (size_t)size;
    return 0;
}

int lower_open(Lower *self, int at, const char *path)
{
    *self = (Lower){.fd = -1};
    self->fd = openat(at, path, O_RDONLY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC);
    if (self->fd < 0)
        return -1;
    if (statx(self->fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &self->real))
        return -1;
    return list_names(self);
}

void lower_close(Lower *self)
{
    if (self->fd >= 0)
        close(self->fd);
    self->fd = -1;
    free(self->content);
    free(self->names);
    self->content = self->names = NULL;
    self->names_bytes = 0;
}

bool lower_fetch(Lower *self)
{
    size_t size = self->real.stx_size;
    if (self->content || !size)
        return true;
    if (lseek(self->fd, 0, SEEK_HOLE) != (off_t)size || !(self->content = malloc(size)))
        return false;
    struct iovec whole = {self->content, size};
    if (preadv2(self->fd, &whole, 1, 0, RWF_NOWAIT) == (ssize_t)size)
        return true;
    free(self->content);
    self->content = NULL;
    return false;
}

static bool has_no_flags(int number)
{
    return number == ENOTTY || number == EOPNOTSUPP || number == EINVAL || number == ENOSYS;
}

/* Flags that the target's file system does not know are left out, as overlayfs does. */
static int carry_flags(int source, int target)
{
    int flags = 0, own = 0; /* the kernel fills an int, whatever the number of the call says */
    if (ioctl(source, FS_IOC_GETFLAGS, &flags))
        return has_no_flags(errno) ? 0 : -1;
    if (!(flags & CARRIED))
        return 0;
    if (!ioctl(target, FS_IOC_GETFLAGS, &own)) {
        own |= flags & CARRIED;
        if (!ioctl(target, FS_IOC_SETFLAGS, &own))
            return 0;
    }
    return has_no_flags(errno) ? 0 : -1;
}

static int set_times_as(const Lower *self, int target, bool keeps_mtime)
{
    const struct statx *real = &self->real;
    struct timespec times[2] = {
        {real->stx_atime.tv_sec, real->stx_atime.tv_nsec},
        {real->stx_mtime.tv_sec, keeps_mtime ? real->stx_mtime.tv_nsec : UTIME_OMIT},
    };
    return futimens(target, times);
}

/* As overlayfs marks it. */
static int leave_data(const Lower *self, int target)
{
    return ftruncate(target, (off_t)self->real.stx_size) ||
                   fsetxattr(target, METACOPY, "", 0, 0)
               ? -1
               : 0;
}

static int fill_content(const Lower *self, const Lower *data, int target, const Wanted *wanted,
                        bool *cloned)
{
    if (wanted->is_metacopy)
        return leave_data(self, target);
    if (copy_content(data->fd, data->content, target, wanted->size_bytes, wanted->order, cloned))
        return -1;
    return wanted->written && wanted->size_bytes && !*cloned ? wanted->written(target) : 0;
}

/* Owner before what a change of it takes away; mode after the ACL, which changes it; times last. */
int lower_dress(const Lower *self, int target, const Wanted *wanted)
{
    if (fchown(target, self->real.stx_uid, self->real.stx_gid) ||
        copy_attributes(self->fd, self->names, self->names_bytes, target) ||
        fchmod(target, self->real.stx_mode & 07777) ||
        fsetxattr(target, INO, wanted->ino, strlen(wanted->ino), 0))
        return -1;
    if (*wanted->protattr &&
        fsetxattr(target, PROTATTR, wanted->protattr, strlen(wanted->protattr), 0))
        return -1;
    if (carry_flags(self->fd, target))
        return -1;
    return set_times_as(self, target, wanted->keeps_mtime);
}

static int fill(const Lower *self, const Lower *data, int target, const Wanted *wanted,
                bool *cloned)
{
    return fill_content(self, data, target, wanted, cloned) ||
           lower_dress(self, target, wanted) ||
           (wanted->size_bytes && order_content(target, wanted->order, *cloned));
}

int lower_copy(const Lower *self, const Lower *data, const Wanted *wanted, bool *cloned)
{
    int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
    int target = openat(wanted->work, wanted->name, flags, 0600);
    if (target < 0 || !fill(self, data, target, wanted, cloned))
        return target;
    int number = errno;
    close(target);
    errno = number;
    return -1;
}
