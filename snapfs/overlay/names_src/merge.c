/* Reads the directories of a stack, in C because a listing's cost is the cost of its entries. */
#define _GNU_SOURCE
#include "merge.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define WHITEOUT_ATTRIBUTE "trusted.overlay.whiteout"
#define DOT_WHITEOUT ".wh."
#define BUFFER_BYTES (64 * 1024)

struct linux_dirent64 {
    uint64_t d_ino;
    int64_t d_off;
    unsigned short d_reclen;
    unsigned char d_type;
    char d_name[];
};

/* FNV-1a with a finaliser; the same in every process, so that a place in a listing stays valid. */
uint64_t name_hash(const char *name, size_t length, int bits)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)name[i]) * 0x100000001b3u;
    hash ^= hash >> 33;
    hash *= 0xff51afd7ed558ccdu;
    hash ^= hash >> 33;
    hash *= 0xc4ceb9fe1a85ec53u;
    hash ^= hash >> 33;
    hash >>= 64 - bits;
    return hash ? hash : 1;
}

void heap_free(Heap *heap)
{
    free(heap->raws);
    free(heap->names);
    heap->raws = NULL;
    heap->names = NULL;
}

static int grow(void **memory, size_t *size, size_t needed, size_t item)
{
    if (needed <= *size)
        return 0;
    size_t bigger = *size ? *size * 2 : 64;
    while (bigger < needed)
        bigger *= 2;
    void *moved = realloc(*memory, bigger * item);
    if (!moved)
        return ENOMEM;
    *memory = moved;
    *size = bigger;
    return 0;
}

static int add(Heap *heap, const char *name, uint64_t ino, uint8_t kind, uint16_t position)
{
    size_t length = strlen(name);
    int error = grow((void **)&heap->raws, &heap->room, heap->count + 1, sizeof *heap->raws);
    if (!error)
        error = grow((void **)&heap->names, &heap->size, heap->used + length + 1, 1);
    if (error)
        return error;
    if (length > NAME_MAX || heap->used + length >= UINT32_MAX || heap->count >= INT32_MAX)
        return EOVERFLOW;
    Raw *raw = &heap->raws[heap->count++];
    raw->hash = name_hash(name, length, heap->hash_bits);
    raw->ino = ino;
    raw->name = (uint32_t)heap->used;
    raw->position = position;
    raw->length = (uint8_t)length;
    raw->kind = kind;
    memcpy(heap->names + heap->used, name, length + 1);
    heap->used += length + 1;
    return 0;
}

/* Whether an empty regular file is a whiteout (kernel 6.7). */
static int is_xwhiteout(int fd, const char *name, uint8_t *kind)
{
    struct stat real;
    char path[NAME_MAX + 64];
    if (fstatat(fd, name, &real, AT_SYMLINK_NOFOLLOW))
        return errno;
    if (real.st_size)
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", fd, name);
    if (lgetxattr(path, WHITEOUT_ATTRIBUTE, NULL, 0) >= 0)
        *kind = 0;
    else if (errno != ENODATA && errno != EOPNOTSUPP)
        return errno;
    return 0;
}

/* The type of an entry; only devices and what the file system does not tell need a stat. */
static int kind_of(int fd, const struct linux_dirent64 *found, const Source *source, uint8_t *kind)
{
    *kind = found->d_type;
    if (*kind == DT_UNKNOWN || *kind == DT_CHR) {
        struct stat real;
        if (fstatat(fd, found->d_name, &real, AT_SYMLINK_NOFOLLOW))
            return errno;
        int whiteout = S_ISCHR(real.st_mode) && real.st_rdev == 0;
        *kind = whiteout ? 0 : (real.st_mode & S_IFMT) >> 12;
    }
    if (*kind == DT_REG && source->xwhiteouts)
        return is_xwhiteout(fd, found->d_name, kind);
    return 0;
}

static int is_dot(const char *name)
{
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* The name that an entry hides in the layers below, or NULL; hides nothing else, whatever it is. */
static const char *hidden_by(const char *name, const Source *source)
{
    size_t length = sizeof DOT_WHITEOUT - 1;
    return source->dot_whiteouts && !strncmp(name, DOT_WHITEOUT, length) ? name + length : NULL;
}

static int read_all(Heap *heap, int fd, const Source *source, uint16_t position, char *buffer)
{
    for (;;) {
        long size = syscall(SYS_getdents64, fd, buffer, BUFFER_BYTES);
        if (size <= 0)
            return size ? errno : 0;
        for (long at = 0; at < size;) {
            const struct linux_dirent64 *found = (const void *)(buffer + at);
            uint8_t kind;
            at += found->d_reclen;
            if (is_dot(found->d_name))
                continue;
            const char *hidden = hidden_by(found->d_name, source);
            int error = hidden ? add(heap, hidden, 0, 0, position)
                               : kind_of(fd, found, source, &kind);
            if (!error && !hidden)
                error = add(heap, found->d_name, found->d_ino, kind, position);
            if (error)
                return error;
        }
    }
}

int heap_read(Heap *heap, const Source *source, uint16_t position)
{
    char *buffer = malloc(BUFFER_BYTES);
    if (!buffer)
        return ENOMEM;
    int fd = open(source->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = fd < 0 ? errno : read_all(heap, fd, source, position, buffer);
    if (fd >= 0)
        close(fd);
    free(buffer);
    return error;
}

static int compare(const void *one, const void *other, void *names)
{
    const Raw *a = one, *b = other;
    if (a->hash != b->hash)
        return a->hash < b->hash ? -1 : 1;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    int order = memcmp((char *)names + a->name, (char *)names + b->name, a->length);
    if (order || a->position != b->position)
        return order ? order : (int)a->position - (int)b->position;
    return !a->kind - !b->kind;
}

void heap_sort(Heap *heap)
{
    if (heap->count)
        qsort_r(heap->raws, heap->count, sizeof *heap->raws, compare, heap->names);
}
