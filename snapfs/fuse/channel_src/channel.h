/* The parts of the channel and what they know of each other.
 *
 *   module.c   the face to Python: arguments in, results out
 *   receive.c  requests off the descriptor, replies onto it
 *   opens.c    answers to OPEN and CREATE that libfuse has no words for
 *   privileges.c  what a request says of its caller's rights
 *   hot.h      requests that are answered here
 *   libfuse.c  functions of libfuse that this library takes the place of
 *
 * INVARIANT: everything here runs on the thread that serves the session, with the interpreter's
 * lock held, unless a function says otherwise.
 */
#ifndef SNAPFS_CHANNEL_H
#define SNAPFS_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

/* receive.c */

enum received {
    NOTHING, /* there is no request; wait for the descriptor */
    FOR_US,  /* `channel_request` holds one whose opcode was asked for */
    FOR_LIBFUSE,
    DONE,   /* one was answered, or needed no answer: there may be more */
    FAILED, /* errno says why */
};

/* Read one request, and answer it if it is hot. What is not for us to answer is found again by the
 * next call, until channel_receive returns it or fuse_session_receive_buf takes it. Needs no lock
 * of the interpreter, but the session's thread. */
enum received channel_read_one(int fd);

/* Read requests until one is for Python; DONE when that takes too long to keep others waiting. */
enum received channel_receive(int fd);

/* The request last received FOR_US; valid until the next one is received. */
const struct in_header *channel_request(void);

/* Begin with a new session: nothing waits, all is for libfuse. */
void channel_reset(void);

/* Choose which opcodes are received FOR_US, one bit each. From here on to the next channel_reset
 * requests are read by channel_receive; whoever does not call this, reads as if we were not here. */
void channel_route(uint64_t opcodes);
bool channel_is_routed(void);

/* Give the request that waits for libfuse away: returns its size, or 0 at the end of the
 * connection, or -EAGAIN. `*buffer` (from malloc, or NULL) is exchanged for the one that holds it. */
int channel_hand_over(void **buffer);

/* Write one reply. Returns 0 or an errno; a request that is gone is no error. Needs no lock. */
int channel_reply(int fd, uint64_t unique, int error, const void *body, size_t size);

/* Write a notice, with its header; the same otherwise: a node that is gone is no error. */
int channel_write(int fd, const void *notice, size_t size);

/* Return the request that waits for libfuse, or NULL. */
const struct in_header *channel_waiting(void);

/* privileges.c */

/* Whether a request says that its caller may not keep the set-id bits of the file it changes. */
bool channel_kills_set_id(const struct in_header *request);
/* Whether a request sets times, and not just both to the present one. */
bool channel_gives_times(const struct in_header *request);

/* opens.c */

struct answer {
    uint64_t fh;
    uint32_t open_flags;
    int32_t backing_id;
};

/* Keep the answer for a handle until the reply that names the handle; false without memory. */
bool opens_put(const struct answer *answer);

/* Take the answer for a handle out; false when there is none. */
bool opens_take(uint64_t fh, struct answer *answer);

/* libfuse.c */

/* Whether libfuse's session was mounted through us: if not, pyfuse3 does not see this library. */
bool libfuse_is_ours(void);

/* Find libfuse's own functions; NULL, or the name of the first that is missing. */
const char *libfuse_find(void);

#endif
