/* A desk answers for one tree what needs no rules: names and attributes of files in directories of
 * lower layers only, straight from their index. What it declines is Python's to answer.
 */
#ifndef SNAPFS_DESK_H
#define SNAPFS_DESK_H

#include "../../overlay/names_src/names.h"
#include "../channel_src/wire.h"

typedef struct {
    PyObject_HEAD
    Handed *handed;
    PyObject *entry_of; /* (Dir, name) -> bytes of an entry_out, counted; None when it is gone */
    uint64_t valid;     /* how long names and attributes may be kept */
    uint32_t valid_nsec;
    int absence; /* absent names may be kept too */
    int xattrs;  /* attributes of files are for all to see */
} Desk;

struct dirent_out {
    uint64_t ino;
    uint64_t off;
    uint32_t namelen;
    uint32_t type;
};

static_assert(sizeof(struct dirent_out) == 24, "fuse_dirent");

/* Results: DONE_HERE, LEFT_TO_PYTHON, or an errno below zero. Nothing of this needs the interpreter's
 * lock, but for desk_list when it may ask Python: then FAILED_THERE says that an exception is set. */
enum { LEFT_TO_PYTHON = 0, DONE_HERE = 1, FAILED_THERE = -4096 };

extern const NamesApi *names;

/* Answer a lookup; an absent name that may be kept has node id 0, another one is ENOENT. */
int desk_lookup(Desk *desk, uint64_t parent, const char *name, size_t length, struct entry_out *out);

/* Attributes of a file that was handed out, or of a directory whose files are. */
int desk_getattr(const Desk *desk, uint64_t ino, struct attr_out *out);

/* Path of such a one in `path` (of PATH_MAX bytes), relative to the descriptor `fd`. */
int desk_path(const Desk *desk, uint64_t ino, char *path, int *fd);

/* Fill `buffer` with entries behind the key `after`, with attributes if `plus`. What needs Python is
 * asked of it if `ask`; otherwise the whole page is left to Python and nothing is counted. */
int desk_list(Desk *desk, uint64_t ino, uint64_t after, int plus, int ask, char *buffer,
              size_t size, size_t *used);

/* desks.c: the desks that answer in the fast lane. All return 0 when memory is short. */
struct hot_api;
int desks_begin(const struct hot_api *api);
int desks_add(Desk *desk);
int desks_remove(Desk *desk);

#endif
