/* Requests off the descriptor, replies onto it.
 *
 * The buffer that holds a request for libfuse is handed over as it is, against the one that libfuse
 * had before: nothing is copied. Both come from malloc, and whoever holds one frees it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "hot.h"

#define READS_AT_ONCE 16 /* answered here before others get their turn */

static char *buffer;
static size_t held;        /* bytes of a request in `buffer` */
static bool is_waiting;    /* ... which is for libfuse */
static bool is_at_end;     /* the kernel has ended the connection */
static bool is_kept;       /* `buffer` holds one FOR_US that was read while Python was idle */
static uint64_t ours;      /* opcodes, one bit each */
static bool is_routed;     /* Python reads requests by us */

static bool is_ours(uint32_t opcode)
{
    return opcode < OPCODES && ours >> opcode & 1;
}

const struct in_header *channel_request(void)
{
    return (const struct in_header *)buffer;
}

const struct in_header *channel_waiting(void)
{
    return is_waiting ? channel_request() : NULL;
}

void channel_reset(void)
{
    is_waiting = is_at_end = is_kept = is_routed = false;
    hot_reset();
    ours = 0;
}

void channel_route(uint64_t opcodes)
{
    ours = opcodes;
    is_routed = true;
}

bool channel_is_routed(void)
{
    return is_routed;
}

static enum received failed(int error)
{
    switch (error) {
    case EAGAIN:
        return NOTHING;
    case ENODEV: /* unmounted: libfuse is told by an end of file */
        is_at_end = true;
        return FOR_LIBFUSE;
    default:
        errno = error;
        return FAILED;
    }
}

static enum received read_request(int fd)
{
    ssize_t size = read(fd, buffer, BUFFER_BYTES);
    if (size < 0)
        /* ENOENT: its caller took it back meanwhile */
        return errno == EINTR || errno == ENOENT ? DONE : failed(errno);
    if (size == 0)
        return failed(ENODEV);
    awake_count();
    held = (size_t)size;
    if (held < sizeof(struct in_header) || channel_request()->len != held)
        return failed(EPROTO);
    uint32_t opcode = channel_request()->opcode;
    if (opcode == OP_INTERRUPT)
        return DONE; /* needs no reply and nothing here can be interrupted; libfuse would make the
                      * kernel send it again and again while the request is in our hands */
    if (hot_answer(fd, channel_request()) == ANSWERED)
        return DONE;
    if (is_ours(opcode))
        return FOR_US;
    is_waiting = true;
    return FOR_LIBFUSE;
}

enum received channel_read_one(int fd)
{
    if (is_waiting || is_at_end)
        return FOR_LIBFUSE;
    if (is_kept)
        return FOR_US;
    if (!buffer && !(buffer = malloc(BUFFER_BYTES)))
        return FAILED;
    enum received found = read_request(fd);
    is_kept = found == FOR_US;
    return found;
}

enum received channel_receive(int fd)
{
    enum received found;
    for (int i = 0; i < READS_AT_ONCE; i++) {
        found = channel_read_one(fd);
        if (found != DONE)
            break;
    }
    is_kept = false; /* whoever called has it now */
    return found;
}

int channel_hand_over(void **theirs)
{
    if (is_at_end)
        return 0;
    if (!is_waiting)
        return -EAGAIN;
    char *taken = *theirs;
    *theirs = buffer;
    buffer = taken;
    is_waiting = false;
    return (int)held;
}

static int write_parts(int fd, const struct iovec *parts, int count)
{
    while (writev(fd, parts, count) < 0) {
        if (errno == ENOENT) /* its caller took it back, or the connection was aborted */
            return 0;
        if (errno != EINTR)
            return errno;
    }
    return 0;
}

int channel_reply(int fd, uint64_t unique, int error, const void *body, size_t size)
{
    struct out_header header = {
        .len = (uint32_t)(sizeof(header) + size), .error = -error, .unique = unique};
    struct iovec parts[] = {{&header, sizeof(header)}, {(void *)body, size}};
    return write_parts(fd, parts, size ? 2 : 1);
}

int channel_write(int fd, const void *notice, size_t size)
{
    struct iovec part = {(void *)notice, size};
    return write_parts(fd, &part, 1);
}
