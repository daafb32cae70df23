/* Names of merged directories, and what was handed to the kernel without a Node: shared by
 * snapfs.overlay._names, which owns these objects, and by the FUSE side, which writes replies from
 * them.
 *
 * Tables belong to the session's thread. Rooms come and go with the interpreter's lock held; finding,
 * handing out and forgetting need no lock, and touch no Python object.
 */
#ifndef SNAPFS_NAMES_H
#define SNAPFS_NAMES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define RANK_BITS 7
#define HASH_BITS 55
#define LAST_DOT 2 /* keys 1 and 2 are `.` and `..` */
#define MORE 0x10

typedef struct {
    uint64_t key;      /* place in the listing: hash << RANK_BITS, made unique and ascending */
    uint64_t low;      /* low part of the inode number */
    uint32_t name;     /* offset into `names`; NUL follows */
    uint16_t position; /* in the stack */
    uint8_t length;
    uint8_t kind; /* type >> 12, with MORE when deeper layers take part */
} Entry;

typedef struct {
    uint32_t slot;
    uint16_t position;
    uint64_t low;
} Deeper;

typedef struct {
    PyObject_HEAD
    PyObject *weakrefs;
    Entry *entries;
    Deeper *deeper; /* ascending by slot, then from the top down */
    char *names;
    uint32_t count;
    uint32_t deeper_count;
    int hash_bits;
} Index;

typedef struct {
    int fd;         /* the layer's root; owned by the layer */
    char *prefix;   /* path with a slash behind it */
    size_t length;
} Spot;

/* A directory of lower layers only, whose files may be handed out without a Node. */
typedef struct room {
    PyObject *directory; /* the Dir */
    Index *index;
    struct room *next_left; /* when nobody needs it any more */
    Spot *spots;
    uint64_t ino, above; /* its number and that of `..` */
    uint32_t spot_count;
    uint32_t users; /* files handed out and not forgotten, and who works with it */
    int is_open;    /* more may be handed out */
} Room;

typedef struct {
    uint64_t ino; /* 0: free */
    Room *room;   /* NULL: a Node has this number, with a lookup count of its own */
    uint32_t slot : 30;
    uint32_t is_touched : 1; /* its data was read, so it may be mapped */
    uint32_t is_hidden : 1;  /* its only name is gone: it is given out no more, and is Python's */
    uint32_t count;
} Guest;

/* Where a number is; the file has the same layout. */
typedef struct {
    _Atomic uint64_t ino; /* 0: free */
    _Atomic uint64_t parent;
} Whereabout;

typedef struct {
    PyObject_HEAD
    int fd; /* owned */
    int bits;
    char *memory;
    size_t size, count;
    size_t most; /* numbers at once, since Python last asked */
    int damaged;  /* what was left made no sense */
    int is_short; /* what some process left was damaged: entries may be missing */
} Places;

typedef struct {
    PyObject_HEAD
    uint64_t prefix;
    Guest *guests; /* open addressing */
    size_t guest_slots, guest_count, claimed_count;
    Room **rooms; /* open addressing by number */
    size_t room_slots, room_count;
    Room *left; /* to be freed when Python is here again */
    Places *places; /* told of each file that is handed out or forgotten; may be NULL */
    uint64_t total; /* lookups counted here */
    char linked;    /* the tree has records of hard links: files with several names are Python's */
    char protects;  /* the upper layer may have immutable and append-only files */
    char protects_below; /* so may the lower ones, by attributes */
    uint64_t moves; /* of directories in the tree */
} Handed;

typedef struct {
    PyTypeObject *index_type;
    PyTypeObject *handed_type;
    /* Position of the first entry with a key above `after`. */
    uint32_t (*above)(const Index *, uint64_t after);
    /* Slot of a name, or -1. */
    int64_t (*find)(const Index *, const char *name, size_t length);
    /* The open room of a directory, or NULL. */
    Room *(*room)(const Handed *, uint64_t ino);
    /* Count one lookup of an entry of a room; false when memory is short. */
    int (*hand)(Handed *, Room *, uint32_t slot);
    /* Room and slot of a file that was handed out; 0 when it was not, or is hidden. */
    int (*guest)(const Handed *, uint64_t ino, Room **, uint32_t *slot);
    /* Say that a file that was handed out has lost its only name. */
    void (*hide)(Handed *, uint64_t ino);
    /* Whether a number may be handed out: no Node has it, and it is not hidden. */
    int (*may_hand)(const Handed *, uint64_t ino);
    /* Note that the data of a file was read, if it was handed out. */
    void (*touch)(Handed *, uint64_t ino);
    /* Keep a room while Python runs; the second gives it back. */
    void (*pin)(Room *);
    void (*unpin)(Handed *, Room *);
    /* Hand out no more files of a directory, which is about to be changed. */
    void (*close)(Handed *, uint64_t ino);
    /* Take back lookups; returns how many were counted here. */
    uint64_t (*forget)(Handed *, uint64_t ino, uint64_t count);
    /* Whether the kernel may have references to a number that an earlier process gave it. */
    int (*is_inherited)(const Handed *, uint64_t ino);
    /* Whether there is a Node with this number that the kernel knows. */
    int (*has_node)(const Handed *, uint64_t ino);
    /* Let a number be that of a Node, which Python is about to make of what was just made in a
     * directory; 0 when memory is short. */
    int (*claim)(Handed *, uint64_t ino, uint64_t parent);
    void (*disclaim)(Handed *, uint64_t ino);
    /* The directory where a number was last said to be; 0 where that is not known. */
    uint64_t (*parent)(const Handed *, uint64_t ino);
} NamesApi;

#define NAMES_CAPSULE "snapfs.overlay._names.api"

extern PyTypeObject IndexType;
extern PyTypeObject HandedType;
extern PyTypeObject PlacesType;

uint32_t index_above(const Index *self, uint64_t after);
int64_t index_find(const Index *self, const char *name, size_t length);
uint64_t name_hash(const char *name, size_t length, int bits);
Room *handed_room(const Handed *self, uint64_t ino);
int handed_hand(Handed *self, Room *room, uint32_t slot);
int handed_guest(const Handed *self, uint64_t ino, Room **room, uint32_t *slot);
void handed_touch(Handed *self, uint64_t ino);
void handed_hide(Handed *self, uint64_t ino);
int handed_may_hand(const Handed *self, uint64_t ino);
void handed_close_room(Handed *self, uint64_t ino);
void handed_pin(Room *room);
void handed_unpin(Handed *self, Room *room);
uint64_t handed_forget(Handed *self, uint64_t ino, uint64_t count);
int handed_has_node(const Handed *self, uint64_t ino);
void handed_disclaim_number(Handed *self, uint64_t ino);
uint64_t handed_parent(const Handed *self, uint64_t ino);
int handed_claim_number(Handed *self, uint64_t ino, uint64_t parent);

void places_note(Places *self, uint64_t ino, uint64_t parent);
void places_drop(Places *self, uint64_t ino);
uint64_t places_get(const Places *self, uint64_t ino);
int places_is_inherited(const Places *self, uint64_t ino);
int handed_is_inherited(const Handed *self, uint64_t ino);

#endif
