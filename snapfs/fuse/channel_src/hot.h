/* Requests that are answered here, without the interpreter: the fast lane.
 *
 *   hot.c      which handler takes an opcode, and who may run one
 *   nodes.c    what Python has said about nodes, and who has them open
 *   answers.c  handlers for opening, attributes and contents
 *   idle.c     the loop that answers while Python has nothing to do
 *
 * A handler answers a request completely or leaves it alone (COLD); then Python answers it, as it
 * would without any of this. Another source file adds its own handlers with `hot_register`.
 *
 * INVARIANT: tables are read and changed under `hot_lock`, which nobody holds across a wait.
 * INVARIANT: what a table says about a node is what Python would answer. Who changes a node takes it
 * out first (channel.Hot.withdraw) and Python offers it again only when it is asked anew.
 */
#ifndef SNAPFS_HOT_H
#define SNAPFS_HOT_H

#include "channel.h"

enum verdict { COLD, ANSWERED };

typedef enum verdict (*hot_handler)(int fd, const struct in_header *request, const void *body,
                                    size_t size);

/* Let a handler see requests of an opcode; the last one registered is asked first. */
bool hot_register(uint32_t opcode, hot_handler handler);

/* The same for other libraries, as a capsule. */
struct hot_api {
    bool (*add)(uint32_t opcode, hot_handler handler);
    int (*reply)(int fd, uint64_t unique, int error, const void *body, size_t size);
};
#define HOT_CAPSULE "snapfs.fuse._channel.hot_api"

/* Answer a request if a handler can; takes the lock. Without the interpreter's lock, too. */
enum verdict hot_answer(int fd, const struct in_header *request);

void hot_lock(void);
void hot_unlock(void);

/* Requests answered by opcode since the session began; of OPCODES entries. */
const uint64_t *hot_counts(void);

/* Begin with a new session: nothing is known and everything is off. */
void hot_reset(void);
void hot_enable(bool on);

/* nodes.c; the lock is held */

enum offered {
    OFFER_OPEN = 1 << 0,               /* read-only opens may be answered with open_flags, backing_id */
    OFFER_ATTR = 1 << 1,               /* the attributes do not change */
    OFFER_NO_SECURITY_XATTRS = 1 << 2, /* no extended attribute is shown; none of `security.` */
    OFFER_NO_USER_XATTRS = 1 << 3,     /* ... of `user.` */
    OFFER_FD = 1 << 4,                 /* `fd` reads its contents */
    OFFER_ALL = (1 << 5) - 1,
};

struct hot_node {
    struct hot_node *next;
    uint64_t nodeid;
    uint64_t attr_valid_s;
    struct attr_out attr;
    uint32_t offers;
    uint32_t opens; /* handles that OPEN gave out here and RELEASE has not taken back */
    uint32_t open_flags;
    int32_t backing_id;
    int fd; /* owned; -1 without OFFER_FD */
    bool tell; /* Python wants to hear of the last RELEASE */
};

#define MAX_NODES (1u << 16)

struct hot_node *nodes_find(uint64_t nodeid);
/* Find or make; NULL without memory. When there are too many, those that nobody has open go. */
struct hot_node *nodes_get(uint64_t nodeid);
/* Forget what was offered; the node stays while it is open. Returns how often it is. */
uint32_t nodes_withdraw(struct hot_node *node, uint32_t offers);
void nodes_withdraw_all(void);
void nodes_clear(void);
size_t nodes_count(void);
/* Count an open, or take one back (false without memory to tell of it: nothing has changed). The
 * node is gone after the last RELEASE when nothing is offered of it. */
void nodes_opened(struct hot_node *node);
bool nodes_released(struct hot_node *node);
size_t nodes_opens(void);

/* Nodes whose last RELEASE has come, for who asked to be told; returns how many were written. */
bool nodes_any_closed(void);
size_t nodes_take_closed(uint64_t *to, size_t room);

/* answers.c */
bool answers_register(void);
/* The handle that all opens answered here have: RELEASE names the node besides. */
uint64_t answers_handle(void);

/* idle.c: answer requests until there is one for Python, `other_fd` is readable, a signal came or
 * `timeout_ms` (-1: none) is over. What is read for Python waits in channel_receive. Unless it is
 * `other_fd` that is readable, or `timeout_ms` is 0, `wake_fd` (an eventfd) is so afterwards.
 * Call without the interpreter's lock, from the session's thread. */
void idle(int fd, int other_fd, int wake_fd, int timeout_ms);

#endif
