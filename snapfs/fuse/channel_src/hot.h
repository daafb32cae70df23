/* Requests that are answered here, without the interpreter: the fast lane.
 *
 *   hot.c      which handler takes an opcode, and who may run one
 *   opened.c   what is open past us, for this process and the next one
 *   passes.c   handlers for opens and releases of that
 *   events.c   what Python is to hear of
 *   answers.c  the answer that is the same for every file
 *   idle.c     the loop that answers while Python has nothing to do
 *   awake.c    processors that do not halt meanwhile
 *
 * A handler answers a request completely or leaves it alone (COLD); then Python answers it, as it
 * would without any of this. Another source file adds its own handlers with `hot_register`.
 *
 * INVARIANT: handlers run on the session's thread, as does Python when it changes what they look at.
 */
#ifndef SNAPFS_HOT_H
#define SNAPFS_HOT_H

#include "channel.h"
#include "opened.h"

#include <sys/stat.h>

#define BIG_BLOCKS 2048 /* as overlay/freeing.py: a file that is freed aside, of which Python hears */

enum verdict { COLD, ANSWERED };

typedef enum verdict (*hot_handler)(int fd, const struct in_header *request, const void *body,
                                    size_t size);

/* Let a handler see requests of an opcode; the last one registered is asked first. */
bool hot_register(uint32_t opcode, hot_handler handler);

enum hot_event_kind {
    EVENT_OPENED,
    EVENT_CLOSED,
    EVENT_CHANGED,
    EVENT_MADE,
    EVENT_REMOVED,
    EVENT_FORGOTTEN,
    EVENT_MOVED,
    EVENT_LINKED,
    EVENT_COPIED,
    EVENT_PASSED,
    EVENT_HIDDEN,
    EVENT_LEFT_DATA,
    EVENT_NONE
};

/* A file of the upper layer was opened for writing here, was closed again, or was changed; a name
 * was made in a directory, or taken from it, or is now in another one, or in both; or the kernel let go of
 * a node; or a lower file or directory was copied up, a file with its data or without; or there was a file
 * that was made and has ended; or a lower file that has a node lost its only name. */
struct hot_event {
    uint64_t nodeid;
    uint64_t ino, blocks, nlink; /* of what was opened, changed, made, removed or copied: before, but
                                  * for what is new, which had no blocks; 0 for the others */
    uint64_t other;   /* the directory of what was made, removed, moved, linked, copied or hidden */
    uint64_t forgotten; /* how many lookups the kernel took back: of what was removed, since then */
    enum hot_event_kind kind;
    uint32_t mode;    /* type of what was made or copied */
    const char *name; /* of what was made, removed, moved, linked, copied or hidden; valid until the
                       * next events are added */
    size_t length;
};

/* The same for other libraries, as a capsule. */
struct hot_api {
    bool (*add)(uint32_t opcode, hot_handler handler);
    int (*reply)(int fd, uint64_t unique, int error, const void *body, size_t size);
    struct opened *(*find)(uint64_t nodeid);
    /* Whether the kernel says OPEN and CREATE to nobody: files are known by node. */
    bool (*is_without_opens)(void);
    /* Whether names may be changed here at all. */
    bool (*takes_names)(void);
    /* Have something done when the session ends, without the interpreter's lock. */
    void (*at_stop)(void (*end)(void));
    /* Whether files may be opened here at all. */
    bool (*passes)(void);
    /* Make an id of a file that is not open, whose stat is `real`; NULL when that cannot be. */
    struct opened *(*make)(int device, uint64_t nodeid, enum opened_kind kind, int file,
                           const struct stat *real);
    /* Count an open for reading, and for writing if `before` says what the file was; reply. COLD
     * when Python has to hear of too many writers first. */
    enum verdict (*enter)(int device, const struct in_header *request, struct opened *entry,
                          const struct stat *before);
    /* Let Python hear that a file or directory was changed, which was `before`; if there is room for
     * that. */
    bool (*may_note)(void);
    void (*note)(uint64_t nodeid, const struct stat *before);
    /* Let Python hear of anything, once or a few times, with two names; if there is room for that. */
    bool (*may_tell)(void);
    void (*tell)(const struct hot_event *event);
    /* Let Python hear that the kernel took back lookups of a node; false when there is no room. */
    bool (*tell_forgotten)(uint64_t nodeid, uint64_t lookups);
    /* Whether Python has heard nothing of a file yet that was made here, has lost its last name, and had
     * no more than these lookups; and have it never hear more than that there was one. */
    bool (*may_end)(uint64_t nodeid, uint64_t lookups);
    void (*end)(uint64_t nodeid, uint64_t lookups);
    /* Count the open of a new file, for writing if `fresh` says what it is; reply with `out`. */
    void (*enter_new)(int device, const struct in_header *request, struct opened *entry,
                      const struct stat *fresh, const struct entry_out *out);
    /* Note a request that is about to have an effect, and that it was answered or has none, where
     * the next worker finds it (inflight.py), with the nodes that it found (replays.py). */
    void (*intend)(uint64_t unique, uint64_t first, uint64_t second);
    void (*settled)(void);
    /* The kernel let go of a node. */
    void (*forgotten)(int device, uint64_t nodeid);
};
#define HOT_CAPSULE "snapfs.fuse._channel.hot_api"

/* Answer a request if a handler can. Without the interpreter's lock, too. */
enum verdict hot_answer(int fd, const struct in_header *request);

/* Requests of an opcode since the session began: answered here, and left to Python. */
struct hot_count {
    uint64_t answered, left;
};

/* By opcode; of OPCODES entries. */
const struct hot_count *hot_counts(void);

/* Begin with a new session: nothing is known and everything is off. */
void hot_reset(void);
void hot_enable(bool on);

/* answers.c */
bool answers_register(void);

/* passes.c */

/* The handle of all opens past us: RELEASE names the node, which has the count. It is the same for
 * every process, so that one can count down what another has opened. */
#define PASSING_HANDLE (UINT64_C(1) << 63)

bool passes_register(void);
/* What opens are counted in; NULL: nothing is opened here. The caller keeps it for as long. */
void passes_use(struct opened_table *table);
struct opened_table *passes_table(void);
void passes_allow(bool on);
void passes_go_without_opens(bool on);
/* Do what was to be done at the end of the session. */
void passes_stop(void);
/* The record that the fast lane notes the request in hand in (inflight.py); NULL: no one reads it. */
void passes_note_in(_Atomic uint64_t *record);
/* The word of such a record's state, with a sum of all its words, as inflight.summed. */
uint64_t passes_summed(uint64_t unique, uint64_t first, uint64_t second, uint64_t state);
extern const struct hot_api hot_api;

/* events.c */

void events_reset(void);
/* Whether Python has something to hear of; it is to take it before it does anything else. */
bool events_any(void);
/* When it is to hear of it at the latest, by `now_ms`; -1 when it may as well be later. */
int64_t events_due_ms(void);
size_t events_take(struct hot_event *to, size_t room);
/* As in hot_api. */
bool events_may_note(void);
void events_note(uint64_t nodeid, const struct stat *before);
bool events_may_tell(void);
void events_tell(const struct hot_event *event);
bool events_tell_forgotten(uint64_t nodeid, uint64_t lookups);
bool events_may_end(uint64_t nodeid, uint64_t lookups);
void events_end(uint64_t nodeid, uint64_t lookups);
/* How many files have come and gone since the session began, with nothing left to do for Python. */
uint64_t events_ended(void);
/* Add one without a name, for which there is room; the second with what a file was. */
void events_add(const struct hot_event *event);
void events_add_stat(enum hot_event_kind kind, uint64_t nodeid, const struct stat *before);

/* idle.c: answer requests until there is one for Python (true: it waits in channel_receive),
 * `other_fd` is readable, Python has to hear of something, a signal came or `timeout_ms` (-1: none) is
 * over. Call without the
 * interpreter's lock, from the session's thread. */
bool idle(int fd, int other_fd, int timeout_ms);
int64_t now_ms(void);

/* awake.c */

/* Keep processors awake by this descriptor of /dev/cpu_dma_latency, which stays the caller's; -1: no
 * longer by any. */
void awake_by(int fd);
/* A request came. */
void awake_count(void);
/* To be called when there is none to answer: see whether many came lately. */
void awake_look(int64_t at_ns);
/* For how long to sleep at most until `awake_end`; -1 when nothing is kept awake. */
int awake_ms(void);
void awake_end(void);

#endif
