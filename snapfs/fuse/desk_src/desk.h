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
} Desk;

struct dirent_out {
    uint64_t ino;
    uint64_t off;
    uint32_t namelen;
    uint32_t type;
};

static_assert(sizeof(struct dirent_out) == 24, "fuse_dirent");

/* Every function returns one of these, or FAILED_HERE with an exception set. */
enum { DECLINED = 0, ANSWERED = 1, FAILED_HERE = -1 };

extern const NamesApi *names;

/* Answer a lookup; an absent name that may be kept has node id 0, another one raises ENOENT. */
int desk_lookup(Desk *desk, uint64_t parent, const char *name, size_t length, struct entry_out *out);

/* Attributes of a file that was handed out. */
int desk_getattr(Desk *desk, uint64_t ino, struct attr_out *out);

/* Path of such a file for calls that know no directory descriptors; 0 when there is none. */
int desk_path(Desk *desk, uint64_t ino, char *path, size_t size);

/* Fill `buffer` with entries behind the key `after`, with attributes if `plus`. */
int desk_list(Desk *desk, uint64_t ino, uint64_t after, int plus, char *buffer, size_t size,
              size_t *used);

#endif
