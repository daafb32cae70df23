/* What goes over /dev/fuse, for tests: a library that is loaded before all others.
 *
 * Requests and replies of the process are appended to the file that FUSE_RECORD names, each after a byte
 * that tells which it is (fuse_streams.py). Where a socket plays the kernel, it gives backing ids.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_PARTS 16
#define FUSE_MAJOR 10
#define FUSE_MINOR 229
#define BACKING_OPEN _IOW(229, 1, char[16])
#define BACKING_CLOSE _IOW(229, 2, uint32_t)

static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static int (*real_ioctl)(int, unsigned long, ...);
static int record = -1;

__attribute__((constructor)) static void begin(void)
{
    real_read = (ssize_t(*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    real_writev = (ssize_t(*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev");
    real_ioctl = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    const char *path = getenv("FUSE_RECORD");
    if (path)
        record = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

static int is_recorded(int fd)
{
    struct stat real;
    return record >= 0 && !fstat(fd, &real) && S_ISCHR(real.st_mode) &&
           real.st_rdev == makedev(FUSE_MAJOR, FUSE_MINOR);
}

static void note(char kind, const struct iovec *parts, int count)
{
    struct iovec all[1 + MOST_PARTS] = {{&kind, 1}};
    if (count > MOST_PARTS)
        abort();
    for (int i = 0; i < count; i++)
        all[1 + i] = parts[i];
    if (real_writev(record, all, 1 + count) < 0)
        abort();
}

ssize_t read(int fd, void *buffer, size_t size)
{
    ssize_t done = real_read(fd, buffer, size);
    if (done > 0 && is_recorded(fd))
        note('Q', &(struct iovec){buffer, (size_t)done}, 1);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    if (is_recorded(fd))
        note('A', parts, count);
    return real_writev(fd, parts, count);
}

int ioctl(int fd, unsigned long wish, ...)
{
    static atomic_int ids;
    struct stat real;
    va_list rest;
    va_start(rest, wish);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    int is_socket = (wish == BACKING_OPEN || wish == BACKING_CLOSE) && !fstat(fd, &real) &&
                    S_ISSOCK(real.st_mode);
    if (is_socket)
        return wish == BACKING_OPEN ? ++ids : 0;
    return real_ioctl(fd, wish, argument);
}
