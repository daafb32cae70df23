/* A desk answers for one tree what needs no rules: names and attributes of files in directories of
 * lower layers only, straight from their index; attributes and opens of these, and of regular files
 * that Python has noted the place of (cards). What it declines is Python's to answer.
 *
 *   desk.c   replies from indexes and cards
 *   list.c   pages of directories
 *   listers.c  ... and who is to have attributes in them
 *   cards.c  where files are
 *   first.c  opens of files that nobody has open
 *   contents.c  reads and writes, where nothing is opened
 *   ranges.c copies from file to file
 *   change.c owners, modes and times, extended attributes
 *   copyup.c copies of lower files
 *   directory.c ... and of directories
 *   create.c new files
 *   link.c   further names of files
 *   remove.c names that go
 *   whiteout.c ... and those that lower layers have
 *   desks.c  the desks in the fast lane
 *   entries.c  ... and what changes names there
 */
#ifndef SNAPFS_DESK_H
#define SNAPFS_DESK_H

#include "../../overlay/names_src/names.h"
#include "../channel_src/wire.h"

#include <limits.h>
#include <sys/stat.h>

#define SET_ID (S_ISUID | S_ISGID)
#define REGULAR 8    /* S_IFREG >> 12 */
#define LINK 10      /* S_IFLNK >> 12 */
#define LOW_MASK ((UINT64_C(1) << 40) - 1) /* as identity.LOW_MASK */
#define PROTECTING (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND)
#define MAIN_BITS 39 /* identity._MAIN_BITS: of numbers that are the same at the next opening */

/* A regular file or symbolic link that has a node, or a directory of the upper layer: its place as it was
 * noted, and which file was there. */
typedef struct card {
    struct card *next;
    uint64_t ino; /* the node's number */
    uint64_t device, real;
    uint64_t parent; /* directory of the name that was noted; 0 of a directory */
    uint64_t moves;  /* of directories, up to then */
    uint64_t listed; /* of a directory: where the listing ends that was last begun; 0: not known */
    Index *index; /* of a directory that is merged: the names that lower layers have */
    Room *room;   /* ... whose index that is, kept for it; NULL: the index is the card's */
    int fd;       /* of the layer; it lives as long as the tree */
    int is_upper;
    mode_t type; /* S_IFREG, S_IFLNK or S_IFDIR */
    const char *data; /* of a metadata-only copy: where its data is, which never changes; or NULL */
    int data_fd;      /* of the layer that has it */
    uint64_t blocks;  /* of the data */
    char path[];
} Card;

typedef struct {
    PyObject_HEAD
    Handed *handed;
    PyObject *entry_of; /* (Dir, name) -> bytes of an entry_out, counted; None when it is gone */
    uint64_t valid;     /* how long names and attributes may be kept */
    uint32_t valid_nsec;
    int absence; /* absent names may be kept too */
    int xattrs;  /* attributes of files are for all to see */
    char refuses_labels; /* of SELinux, where there is none (labels.py) */
    char passes_upper; /* files of the upper layer may be read past us */
    char takes_writers; /* ... and written, now */
    char takes_names;   /* ... and made, and removed */
    char awaits_space;  /* neither, since a big file was removed where there is little else: Python
                         * waits for what it holds (overlay/freeing.py) */
    char leaves_data;   /* a change of attributes copies no data (overlay/metacopying.py) */
    char leaves_first;  /* ... once Python has made such a copy */
    char leaves_forgets; /* one of what an earlier worker gave the kernel may be late: Python decides
                          * what it takes back */
    int order;          /* what the data of a copy waits for (enum order, overlay/ordering.py) */
    int64_t copies_from_ns; /* ... and until when that takes too long for us */
    unsigned late_copies;   /* in a row, for which it did */
    int keeps_in;       /* the work directory, for removed files that the kernel knows; or -1 */
    uint64_t main_device, main_base; /* of inode numbers that are shown as they are (identity.py) */
    Card **cards;
    size_t card_buckets, card_count;
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

/* The same of a directory that has no room yet, if what it is in has one: `ls` asks for attributes of
 * directories before it lists them. */
int desk_child_path(const Desk *desk, uint64_t ino, char *path, int *fd);

/* What a thread asks of a directory: entries behind the key `after`, with room for attributes if
 * `plus`. */
typedef struct {
    uint64_t ino, after;
    uint32_t pid;
    int plus;
} Wish;

/* Fill `buffer` with entries. What needs Python is asked of it if `ask`; otherwise the whole page is left
 * to Python and nothing is counted. */
int desk_list(Desk *desk, const Wish *wish, int ask, char *buffer, size_t size, size_t *used);

/* Whether nothing is left of the listing of a directory of the upper layer behind `after`. */
int desk_list_ends(const Desk *desk, uint64_t ino, uint64_t after);

/* Fill in an entry of a room without counting it, unless it is a directory or has a node. */
int desk_show(const Desk *desk, const Room *room, uint32_t slot, struct entry_out *out);
int desk_hand(Desk *desk, Room *room, uint32_t slot, struct entry_out *out);

/* A directory with an upper part, and where to go on in what it shows. */
typedef struct {
    const Index *index;
    uint64_t ino, above, after;
} Listing;

#define KNOWN_ROOM 1024

/* Nodes that a page hands out and that are still to be counted. */
struct known {
    uint64_t inos[KNOWN_ROOM];
    size_t count;
};

/* Fill `buffer` with entries and attributes of such a directory, those with a place that is noted from
 * there; all others are asked of Python, which counts them. FAILED_THERE: an exception is set. */
int desk_list_known(Desk *desk, PyObject *directory, const Listing *it, struct known *known,
                    char *buffer, size_t size, size_t *used);

/* listers.c */

/* Whether a thread is to have attributes with the names that it lists; 0, who is not known, is. */
int lister_looks(uint32_t pid);
/* Note that it was given names of a directory without. */
void lister_given(uint32_t pid, uint64_t directory, uint32_t names);
/* Note that a name in a directory was looked up. */
void lister_looked_up(uint64_t directory);

/* Stat the file of a card as the tree shows it, where that has no rules. */
int desk_stat_noted(const Desk *desk, const Card *card, struct stat *real);

/* A name in a directory of the upper layer that is no name of what lies below: where that is, the number
 * of the directory, and what that is now. */
typedef struct {
    int fd;
    char path[PATH_MAX];
    uint64_t parent;
    struct stat before;
} Site;

/* cards.c */
Card *card_find(const Desk *desk, uint64_t ino);
/* Note a file or directory, if there is such a one; 0 when memory is short. The path is copied and
 * the index kept; what else `wanted` says is taken as it is. Needs the interpreter's lock, as do the
 * next two. */
int card_put(Desk *desk, const Card *wanted, const char *path);
/* Where the data of a metadata-only copy is. */
typedef struct {
    int fd;
    const char *path;
} Data;
/* Note what is new in the upper layer, of a metadata-only copy with its data; needs no lock. 0 where the
 * number is noted, too much is, or memory is short. */
int card_add(Desk *desk, uint64_t ino, const Site *site, const struct stat *real, const Data *data);
/* Note the copy of a directory that had a room, which is kept as long. */
int card_add_merged(Desk *desk, Room *room, const Site *site, const struct stat *real);
void card_drop(Desk *desk, uint64_t ino);
/* Note another name of a file or link of the upper layer instead of the one that was; needs no lock. */
void card_move(Desk *desk, uint64_t ino, const Site *site, const struct stat *real);
void cards_clear(Desk *desk);
/* The directory of a name of a file that Python knows, if it is not this one; 0 when none is noted. */
uint64_t card_other_name(const Desk *desk, uint64_t ino, uint64_t parent, const char *name,
                         size_t length);
/* Say a path for calls that take no directory descriptor: its length, or 0 when it does not fit. */
int say_path(char full[PATH_MAX], int at, const char *path);
/* 0 when what is noted has an attribute; else why not, an errno. */
int card_attribute(const Card *card, const char *name);
/* Stat the file; LEFT_TO_PYTHON when another one is there now, or none. */
int card_stat(const Card *card, struct stat *real);

/* first.c */

/* Open a file that nobody has open, to make an id of it: a descriptor, or -1 when that is Python's.
 * A writer's, which is open already perhaps, needs none. */
int first_open(const Desk *desk, uint64_t ino, struct stat *real, int *is_upper);
/* Whether an upper file may be written as it is now, without rules; stats it. */
int first_may_write(const Desk *desk, uint64_t ino, struct stat *real);

/* Where a regular file's data is, and whether in the upper layer; 0 where Python has to say. */
int file_place(const Desk *desk, uint64_t ino, char *path, int *fd, int *is_upper);

/* Whether a file has data of its own, or none to have (metacopy.py). */
int file_holds_data(int file, const struct stat *real);

/* Whether a file or directory is immutable or append-only to users. */
int is_protected(const Desk *desk, const Card *card);
int is_protected_file(const Desk *desk, int file);

/* Number of the node of an upper file that carries none of its own; 0 when Python has to say. */
uint64_t desk_number(const Desk *desk, const struct stat *real);

/* create.c */

struct create_in {
    uint32_t flags;
    uint32_t mode;
    uint32_t umask;
    uint32_t open_flags;
};

static_assert(sizeof(struct create_in) == 16, "fuse_create_in");

struct mknod_in {
    uint32_t mode;
    uint32_t rdev;
    uint32_t umask;
    uint32_t padding;
};

static_assert(sizeof(struct mknod_in) == 16, "fuse_mknod_in");

struct mkdir_in {
    uint32_t mode;
    uint32_t umask;
};

static_assert(sizeof(struct mkdir_in) == 8, "fuse_mkdir_in");

/* What is new: where and how it is made, and what came of it. */
typedef struct {
    Site site;
    mode_t mode;        /* with its type */
    int access;         /* how a regular file is opened */
    const char *target; /* of a symbolic link */
    struct stat real;
    int file; /* open, if it is a regular one; or -1 */
    uint64_t nodeid;
} Creation;

/* Whether a file, link or directory of `it->mode` can be made without rules, and how. */
int creation_plan(Desk *desk, const struct in_header *request, const char *name, size_t length,
                  Creation *it);
/* Make it; 0 when Python is to do it all: nothing is there then. */
int creation_make(const Desk *desk, Creation *it);
void creation_undo(const Creation *it);

/* remove.c */

/* Where a name that lower layers do not have may be changed now, if in a directory of the upper one. */
int site_find(const Desk *desk, uint64_t parent, const char *name, size_t length, Site *it);
/* Likewise where any name is, whether or not that may be now. */
int site_above(const Desk *desk, uint64_t parent, const char *name, size_t length, Site *it);

/* What getdents64(2) gives. */
struct listed {
    uint64_t ino;
    int64_t off;
    uint16_t length;
    uint8_t type;
    char name[];
};

/* Whether an attribute may be one of an overlay's, which have rules. */
int is_trusted(const char *name);

/* Whether a file or link carries nothing that has rules, and nothing watches it. */
int is_plain(int fd, const char *path, const struct stat *real);

/* A name that goes, and what it is of. */
typedef struct {
    Site site;
    struct stat real;
    uint64_t nodeid;
    uint64_t stays_in; /* the directory of another name, which Python knows; 0: it is the last */
} Removal;

/* Whether a name can be removed without rules: that of an upper file or link, or of an empty upper
 * directory if that is wanted, with nothing below it, whose node Python knows. */
int removal_plan(const Desk *desk, uint64_t parent, const char *name, size_t length,
                 int is_directory, Removal *it);
/* Take the name away, and if it is the last keep the file under its number; 0 when nothing was done. */
int removal_make(const Desk *desk, const Removal *it);
/* Delete a file that was kept; 0 when that failed. */
int removal_end(const Desk *desk, uint64_t nodeid);

/* Name in the work directory of what is kept under the number of a node. */
#define KEPT_NAME 24
void kept_name(const Desk *desk, uint64_t nodeid, char kept[KEPT_NAME]);

struct rename_in {
    uint64_t new_parent;
};

static_assert(sizeof(struct rename_in) == 8, "fuse_rename_in");

/* What is to be called otherwise, and how. */
typedef struct {
    uint64_t parent, new_parent;
    const char *name, *new_name;
    size_t length, new_length;
} Names;

/* A name that goes for another, which may have been that of another file: of that, only the site counts
 * if not. */
typedef struct {
    Removal node, target;
    int replaces;
} Move;

/* Whether a file or link can be moved without rules; what it replaces is one that could be removed. */
int move_plan(const Desk *desk, const Names *n, Move *it);
/* Move it, and keep what it replaces; 0 when nothing was done. */
int move_make(const Desk *desk, const Move *it);

/* link.c */

struct link_in {
    uint64_t old_nodeid;
};

static_assert(sizeof(struct link_in) == 8, "fuse_link_in");

/* A further name of a file: of which, where, and what the file was and is. */
typedef struct {
    Site site;
    const Card *card;
    struct stat before, real;
} Further;

/* Whether an upper file or link can have a further name without rules. */
int further_plan(const Desk *desk, uint64_t nodeid, uint64_t parent, const char *name, size_t length,
                 Further *it);
/* Make it; 0 when nothing was done. */
int further_make(Further *it);

/* change.c */

struct setattr_in {
    uint32_t valid;
    uint32_t padding;
    uint64_t fh;
    uint64_t size;
    uint64_t lock_owner;
    uint64_t atime;
    uint64_t mtime;
    uint64_t ctime;
    uint32_t atimensec;
    uint32_t mtimensec;
    uint32_t ctimensec;
    uint32_t mode;
    uint32_t unused;
    uint32_t uid;
    uint32_t gid;
    uint32_t unused_too;
};

static_assert(sizeof(struct setattr_in) == 88, "fuse_setattr_in");

struct setxattr_in {
    uint32_t size;
    uint32_t flags;
};

static_assert(sizeof(struct setxattr_in) == 8, "fuse_setxattr_in without FUSE_SETXATTR_EXT");

/* Whether a change may be without rules. */
int change_is_simple(const struct setattr_in *wish);
/* Change a file's attributes; says what it was and is, where it does not leave it to Python. */
int desk_change(const Desk *desk, uint64_t ino, const struct setattr_in *wish, struct stat *before,
                struct stat *after);

/* Whether an extended attribute may be set without rules, but for those of the file. */
int attribute_is_simple(const char *name);
/* Set it of a file or directory of the upper layer; says what that was. */
int desk_set_attribute(const Desk *desk, uint64_t ino, const char *name, const void *value,
                       size_t size, struct stat *before);

/* Say attributes of a node as they go over the wire. */
void desk_say(struct attr_out *out, uint64_t ino, const struct stat *real);

/* copyup.c */

/* What is about to be changed of a file. */
enum change { ATTRIBUTES, CONTENT };

/* Copy a lower file up that is about to be changed, where that has no rules: it has a card then. */
void desk_copy_up(Desk *desk, uint64_t ino, enum change change);

/* directory.c */

/* Copy a directory of lower layers up that is about to be changed, after those above it, where that
 * has no rules: it has a card then. */
void desk_directory_up(Desk *desk, uint64_t ino);
/* Give a copy that was made aside its name, in a directory that has a card and keeps its times, but is
 * marked to have copies in it; 0 when that failed. */
int directory_publish(const Desk *desk, const Site *site, const char *temp);

/* desks.c: the desks that answer in the fast lane. These return 0 when memory is short. */
struct hot_api;
int desks_begin(const struct hot_api *api);
int desks_add(Desk *desk);
int desks_remove(Desk *desk);
/* Whether somebody may write to a file past us. */
int desks_is_written(uint64_t nodeid);

#endif
