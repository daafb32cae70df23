/* Descriptors of files that are read and written here, by node: of a lane without opens. */
#ifndef SNAPFS_KEPT_H
#define SNAPFS_KEPT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define MOST_KEPT 512 /* the least recently used is closed first */

struct kept {
    struct kept *next;           /* of its bucket */
    struct kept *newer, *older;  /* by their last use */
    uint64_t nodeid;
    int fd;
    int is_writable;
    int64_t slow_until_ns;       /* until then who writes it would wait */
    _Atomic unsigned users;      /* the table, and threads that read by it */
};

/* Return what is kept of a node, which is now the one used last; or NULL. */
struct kept *kept_find(uint64_t nodeid);

/* Keep a descriptor, which is owned from here on, in the place of what was kept; NULL when memory is
 * short: it is closed then. */
struct kept *kept_add(uint64_t nodeid, int fd, int is_writable);

void kept_drop(uint64_t nodeid);
/* Drop those of one tree: of all nodes with these upper bits. */
void kept_drop_tree(uint64_t prefix, unsigned low_bits);
size_t kept_count(void);

/* Have a descriptor stay open although it may be dropped; the second in any thread. */
void kept_hold(struct kept *file);
void kept_release(struct kept *file);

#endif
