/* What the files of snapfs.overlay._copies say to each other.
 *
 * Calls of the system go one by one through libc's symbols: a test can stand before any of them.
 */
#ifndef SNAPFS_COPIES_H
#define SNAPFS_COPIES_H

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>

/* What a copy's data waits for before the copy is published, so that no power cut shows it without
 * (ordering.py has the same). */
enum order { ORDER_NOTHING, ORDER_WRITTEN, ORDER_SYNCED };

/* Copies a file's data, holes as holes, or shares it. Sets errno and returns -1 on an error.
 *
 * `content` is all of it, if that was read before and has no holes. What is to wait for the disk
 * (`order`) is on its way there, and little of it left to wait for, however big the file is.
 */
int copy_content(int source, const char *content, int target, off_t size_bytes, enum order order,
                 bool *cloned);
/* Waits for what `order` says. Sets errno. */
int order_content(int target, enum order order, bool cloned);

/* Gives `target` those of the attributes called `names` that are a user's. Sets errno. */
int copy_attributes(int source, const char *names, size_t names_bytes, int target);

/* Whether a name in such a list is there. */
bool has_name(const char *names, size_t names_bytes, const char *name);

/* A regular file or directory of a lower layer, open; it never changes. */
typedef struct {
    int fd;
    struct statx real;
    char *names; /* of its extended attributes, each with a 0 behind it */
    size_t names_bytes;
    char *content; /* all of it, once it was fetched */
} Lower;

/* Whether none of a file is dirty or being written out: 1 or 0, or -1 with errno (ENOSYS). */
int is_clean(int fd);

/* What its copy is to be: a new name in `work`. */
typedef struct {
    int work;
    const char *name;
    off_t size_bytes;
    enum order order;
    int (*written)(int target); /* told of the data that is there and not shared, before all else; or NULL */
    bool keeps_mtime;
    bool is_metacopy; /* its data stays where it is: the copy is a hole of its size */
    const char *ino, *protattr; /* our attributes; the second only if it is not empty */
} Wanted;

/* 0, or -1 with errno; to be closed in either case. */
int lower_open(Lower *self, int at, const char *path);
/* Takes what is in memory, without waiting: whether that is all of it, and has no hole. */
bool lower_fetch(Lower *self);
/* Makes a copy with the content of `data`, which may be published: a descriptor, or -1 with errno,
 * when the name may be there. */
int lower_copy(const Lower *self, const Lower *data, const Wanted *wanted, bool *cloned);
/* Gives a copy, which has its data, all else that it is to have. Sets errno and returns -1 on an error. */
int lower_dress(const Lower *self, int target, const Wanted *wanted);
void lower_close(Lower *self); /* once more is no harm */

/* The same for the FUSE side. */
typedef struct {
    int (*open)(Lower *self, int at, const char *path);
    bool (*fetch)(Lower *self);
    int (*copy)(const Lower *self, const Lower *data, const Wanted *wanted, bool *cloned);
    int (*dress)(const Lower *self, int target, const Wanted *wanted);
    int (*is_clean)(int fd);
    int (*order_content)(int target, enum order order, bool cloned);
    void (*close)(Lower *self);
    bool (*has_name)(const char *names, size_t names_bytes, const char *name);
} CopiesApi;

#define COPIES_CAPSULE "snapfs.overlay._copies.api"

extern PyTypeObject SourceType;
extern PyMethodDef calls[];

#endif
