/* Calls that change files below a directory, of which one fails: for LD_PRELOAD.

   calls_fail(under, at, error, onwards) begins to count those calls: the one numbered `at`, from
   1, returns -1 with `error` and does nothing; with `onwards` so do all after it.
   calls_lie(under, at, error) is the same with `onwards`, but the one numbered `at` is done.
   calls_kill(at, status) begins to count them anywhere: in place of one the process ends.
   calls_counted() says how many there were. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char under[PATH_MAX];
static size_t under_length;
static int fails_at, fails_with, fails_onwards, lies, kills_with;
static atomic_int counted;
static atomic_int armed;

void calls_fail(const char *directory, int at, int error, int onwards) {
    under_length = strlen(directory);
    memcpy(under, directory, under_length + 1);
    fails_at = at;
    fails_with = error;
    fails_onwards = onwards;
    lies = 0;
    atomic_store(&counted, 0);
    atomic_store(&armed, 1);
}

void calls_lie(const char *directory, int at, int error) {
    calls_fail(directory, at, error, 1);
    lies = 1;
}

void calls_kill(int at, int status) {
    kills_with = status;
    calls_fail("", at, 0, 0);
}

int calls_counted(void) {
    return atomic_load(&counted);
}

static int is_below(const char *path) {
    return strncmp(path, under, under_length) == 0
        && (path[under_length] == '/' || path[under_length] == 0 || path[under_length] == ' ');
}

static int is_ours(int fd) {
    char name[64], path[PATH_MAX];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return is_below(path);
}

static int names_ours(int fd, const char *path) {
    int named;
    if (path == NULL || path[0] != '/')
        return fd != AT_FDCWD && is_ours(fd);
    if (sscanf(path, "/proc/self/fd/%d", &named) == 1)
        return is_ours(named);
    return is_below(path);
}

static int fails(void) {
    int number = atomic_fetch_add(&counted, 1) + 1;
    if (number != fails_at && !(fails_onwards && number > fails_at))
        return 0;
    if (kills_with)
        _exit(kills_with);
    errno = fails_with;
    return 1;
}

#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

#define CALL(type, name, ours, parameters, ...)                                                    \
    type name parameters {                                                                         \
        static __typeof__(&name) real;                                                             \
        if (real == NULL)                                                                          \
            real = REAL(name);                                                                     \
        if (atomic_load(&armed) && (ours) && fails()) {                                            \
            if (lies && atomic_load(&counted) == fails_at) {                                       \
                real(__VA_ARGS__);                                                                 \
                errno = fails_with;                                                                \
            }                                                                                      \
            return -1;                                                                             \
        }                                                                                          \
        return real(__VA_ARGS__);                                                                  \
    }

typedef const char *text;
typedef const void *bytes;
typedef const struct iovec *vector;

CALL(ssize_t, write, is_ours(fd), (int fd, bytes b, size_t n), fd, b, n)
CALL(ssize_t, pwrite, is_ours(fd), (int fd, bytes b, size_t n, off_t at), fd, b, n, at)
CALL(ssize_t, pwrite64, is_ours(fd), (int fd, bytes b, size_t n, off64_t at), fd, b, n, at)
CALL(ssize_t, writev, is_ours(fd), (int fd, vector v, int n), fd, v, n)
CALL(ssize_t, pwritev, is_ours(fd), (int fd, vector v, int n, off_t at), fd, v, n, at)
CALL(ssize_t, pwritev64, is_ours(fd), (int fd, vector v, int n, off64_t at), fd, v, n, at)
CALL(ssize_t, copy_file_range, is_ours(to),
     (int from, off64_t *at, int to, off64_t *there, size_t n, unsigned flags), from, at, to, there,
     n, flags)
CALL(int, fsync, is_ours(fd), (int fd), fd)
CALL(int, fdatasync, is_ours(fd), (int fd), fd)
CALL(int, syncfs, is_ours(fd), (int fd), fd)
CALL(int, sync_file_range, is_ours(fd), (int fd, off64_t at, off64_t n, unsigned flags), fd, at, n,
     flags)
CALL(int, ftruncate, is_ours(fd), (int fd, off_t n), fd, n)
CALL(int, ftruncate64, is_ours(fd), (int fd, off64_t n), fd, n)
CALL(int, truncate, names_ours(AT_FDCWD, path), (text path, off_t n), path, n)
CALL(int, truncate64, names_ours(AT_FDCWD, path), (text path, off64_t n), path, n)
CALL(int, fallocate, is_ours(fd), (int fd, int mode, off_t at, off_t n), fd, mode, at, n)
CALL(int, fallocate64, is_ours(fd), (int fd, int mode, off64_t at, off64_t n), fd, mode, at, n)
CALL(int, rename, names_ours(AT_FDCWD, to), (text from, text to), from, to)
CALL(int, renameat, names_ours(there, to), (int here, text from, int there, text to), here, from,
     there, to)
CALL(int, renameat2, names_ours(there, to),
     (int here, text from, int there, text to, unsigned flags), here, from, there, to, flags)
CALL(int, link, names_ours(AT_FDCWD, to), (text from, text to), from, to)
CALL(int, linkat, names_ours(there, to), (int here, text from, int there, text to, int flags), here,
     from, there, to, flags)
CALL(int, symlink, names_ours(AT_FDCWD, path), (text target, text path), target, path)
CALL(int, symlinkat, names_ours(fd, path), (text target, int fd, text path), target, fd, path)
CALL(int, mkdir, names_ours(AT_FDCWD, path), (text path, mode_t mode), path, mode)
CALL(int, mkdirat, names_ours(fd, path), (int fd, text path, mode_t mode), fd, path, mode)
CALL(int, mknod, names_ours(AT_FDCWD, path), (text path, mode_t mode, dev_t dev), path, mode, dev)
CALL(int, mknodat, names_ours(fd, path), (int fd, text path, mode_t mode, dev_t dev), fd, path,
     mode, dev)
CALL(int, unlink, names_ours(AT_FDCWD, path), (text path), path)
CALL(int, unlinkat, names_ours(fd, path), (int fd, text path, int flags), fd, path, flags)
CALL(int, rmdir, names_ours(AT_FDCWD, path), (text path), path)
CALL(int, chmod, names_ours(AT_FDCWD, path), (text path, mode_t mode), path, mode)
CALL(int, fchmod, is_ours(fd), (int fd, mode_t mode), fd, mode)
CALL(int, fchmodat, names_ours(fd, path), (int fd, text path, mode_t mode, int flags), fd, path,
     mode, flags)
CALL(int, chown, names_ours(AT_FDCWD, path), (text path, uid_t u, gid_t g), path, u, g)
CALL(int, lchown, names_ours(AT_FDCWD, path), (text path, uid_t u, gid_t g), path, u, g)
CALL(int, fchown, is_ours(fd), (int fd, uid_t u, gid_t g), fd, u, g)
CALL(int, fchownat, names_ours(fd, path), (int fd, text path, uid_t u, gid_t g, int flags), fd,
     path, u, g, flags)
CALL(int, utimensat, names_ours(fd, path), (int fd, text path, const struct timespec t[2], int flags),
     fd, path, t, flags)
CALL(int, futimens, is_ours(fd), (int fd, const struct timespec t[2]), fd, t)

int removexattr(text, text);
int lremovexattr(text, text);
int fremovexattr(int, text);
CALL(int, removexattr, names_ours(AT_FDCWD, path), (text path, text name), path, name)
CALL(int, lremovexattr, names_ours(AT_FDCWD, path), (text path, text name), path, name)
CALL(int, fremovexattr, is_ours(fd), (int fd, text name), fd, name)

int setxattr(text, text, bytes, size_t, int);
int lsetxattr(text, text, bytes, size_t, int);
int fsetxattr(int, text, bytes, size_t, int);
CALL(int, setxattr, names_ours(AT_FDCWD, path), (text path, text name, bytes b, size_t n, int how),
     path, name, b, n, how)
CALL(int, lsetxattr, names_ours(AT_FDCWD, path), (text path, text name, bytes b, size_t n, int how),
     path, name, b, n, how)
CALL(int, fsetxattr, is_ours(fd), (int fd, text name, bytes b, size_t n, int how), fd, name, b, n,
     how)

/* Opening counts where it makes or empties a file. */

static int has_mode(int flags) {
    return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
}

static int opens_to_change(int fd, const char *path, int flags) {
    if ((flags & O_TRUNC) != 0 || (flags & O_TMPFILE) == O_TMPFILE)
        return 1;
    return (flags & O_CREAT) != 0 && faccessat(fd, path, F_OK, 0) != 0;
}

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...) {                                                   \
        static __typeof__(&name) real;                                                             \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = has_mode(flags) ? va_arg(rest, mode_t) : 0;                           \
        va_end(rest);                                                                              \
        if (real == NULL)                                                                          \
            real = REAL(name);                                                                     \
        int ours = atomic_load(&armed) && names_ours(AT_FDCWD, path)                               \
            && opens_to_change(AT_FDCWD, path, flags);                                             \
        return ours && fails() ? -1 : real(path, flags, mode);                                     \
    }

#define OPEN_AT(name)                                                                              \
    int name(int fd, const char *path, int flags, ...) {                                           \
        static __typeof__(&name) real;                                                             \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = has_mode(flags) ? va_arg(rest, mode_t) : 0;                           \
        va_end(rest);                                                                              \
        if (real == NULL)                                                                          \
            real = REAL(name);                                                                     \
        int ours = atomic_load(&armed) && names_ours(fd, path)                                     \
            && opens_to_change(fd, path, flags);                                                   \
        return ours && fails() ? -1 : real(fd, path, flags, mode);                                 \
    }

OPEN(open)
OPEN(open64)
OPEN_AT(openat)
OPEN_AT(openat64)

int ioctl(int fd, unsigned long request, ...) {
    static int (*real)(int, unsigned long, void *);
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (real == NULL)
        real = (int (*)(int, unsigned long, void *)) dlsym(RTLD_NEXT, "ioctl");
    if (atomic_load(&armed) && request == FICLONE && is_ours(fd) && fails())
        return -1;
    return real(fd, request, argument);
}
