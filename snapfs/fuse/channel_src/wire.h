/* What goes over /dev/fuse, as far as the channel touches it (linux/fuse.h, protocol 7).
 *
 * Written out here because the header of the system that builds may be older than the kernel that
 * runs: backing ids came with 7.40.
 */
#ifndef SNAPFS_WIRE_H
#define SNAPFS_WIRE_H

#include <assert.h>
#include <stdint.h>

struct in_header {
    uint32_t len;
    uint32_t opcode;
    uint64_t unique;
    uint64_t nodeid;
    uint32_t uid;
    uint32_t gid;
    uint32_t pid;
    uint16_t total_extlen; /* in units of 8 bytes */
    uint16_t padding;
};

struct out_header {
    uint32_t len;
    int32_t error;
    uint64_t unique;
};

struct attr_out {
    uint64_t ino;
    uint64_t size;
    uint64_t blocks;
    uint64_t atime;
    uint64_t mtime;
    uint64_t ctime;
    uint32_t atimensec;
    uint32_t mtimensec;
    uint32_t ctimensec;
    uint32_t mode;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint32_t rdev;
    uint32_t blksize;
    uint32_t flags;
};

struct entry_out {
    uint64_t nodeid;
    uint64_t generation;
    uint64_t entry_valid;
    uint64_t attr_valid;
    uint32_t entry_valid_nsec;
    uint32_t attr_valid_nsec;
    struct attr_out attr;
};

struct open_out {
    uint64_t fh;
    uint32_t open_flags;
    int32_t backing_id;
};

#define OPEN_PASSTHROUGH (1u << 7) /* FOPEN_PASSTHROUGH */

struct create_out {
    struct entry_out entry;
    struct open_out open;
};

static_assert(sizeof(struct in_header) == 40, "fuse_in_header");
static_assert(sizeof(struct out_header) == 16, "fuse_out_header");
static_assert(sizeof(struct attr_out) == 88, "fuse_attr");
static_assert(sizeof(struct entry_out) == 128, "fuse_entry_out");
static_assert(sizeof(struct open_out) == 16, "fuse_open_out");
static_assert(sizeof(struct create_out) == 144, "fuse_entry_out and fuse_open_out");

enum {
    OP_LOOKUP = 1,
    OP_FORGET = 2,
    OP_GETATTR = 3,
    OP_SETATTR = 4,
    OP_READLINK = 5,
    OP_SYMLINK = 6,
    OP_MKNOD = 8,
    OP_MKDIR = 9,
    OP_UNLINK = 10,
    OP_RMDIR = 11,
    OP_RENAME = 12,
    OP_LINK = 13,
    OP_OPEN = 14,
    OP_READ = 15,
    OP_WRITE = 16,
    OP_RELEASE = 18,
    OP_SETXATTR = 21,
    OP_GETXATTR = 22,
    OP_LISTXATTR = 23,
    OP_READDIR = 28,
    OP_CREATE = 35,
    OP_INTERRUPT = 36,
    OP_IOCTL = 39,
    OP_BATCH_FORGET = 42,
    OP_READDIRPLUS = 44,
    OP_COPY_FILE_RANGE = 47,
    OP_COPY_FILE_RANGE_64 = 53,
    OPCODES = 64, /* one more than the highest that a bit mask holds */
};

/* Enough for the biggest WRITE that INIT grants (handover.MAX_WRITE_BYTES) and its headers. */
#define BUFFER_BYTES ((1u << 20) + 4096u)

#define RESENT (UINT64_C(1) << 63) /* of a request's number: a dead worker had read it */

/* INVARIANT: a node's number is a visible inode number and the incarnation bit; no reply shows it. */
#define VISIBLE_INO(ino) ((ino) & ~(UINT64_C(1) << 63))

#endif
