/* What libfuse or pyfuse3 does not hand on of a request: that its caller may not keep set-id bits, and
 * that it gives times.
 *
 * With HANDLE_KILLPRIV_V2 the kernel says the first of each write, truncation and truncating open.
 */
#include <string.h>

#include "channel.h"

enum {
    FATTR_ATIME = 1 << 4,
    FATTR_MTIME = 1 << 5,
    FATTR_ATIME_NOW = 1 << 7,
    FATTR_MTIME_NOW = 1 << 8,
    FATTR_KILL_SUIDGID = 1 << 11,
    OPEN_KILL_SUIDGID = 1 << 0,
    WRITE_KILL_SUIDGID = 1 << 2,
};

/* Return the 32 bits at `at` of what follows a request's header, 0 past its end. */
static uint32_t word(const struct in_header *request, size_t at)
{
    uint32_t value = 0;
    if (sizeof(*request) + at + sizeof(value) <= request->len)
        memcpy(&value, (const char *)(request + 1) + at, sizeof(value));
    return value;
}

bool channel_kills_set_id(const struct in_header *request)
{
    switch (request->opcode) {
    case OP_SETATTR: /* fuse_setattr_in.valid */
        return word(request, 0) & FATTR_KILL_SUIDGID;
    case OP_OPEN: /* fuse_open_in.open_flags */
        return word(request, 4) & OPEN_KILL_SUIDGID;
    case OP_WRITE: /* fuse_write_in.write_flags */
        return word(request, 20) & WRITE_KILL_SUIDGID;
    default:
        return false;
    }
}

bool channel_gives_times(const struct in_header *request)
{
    uint32_t valid = request->opcode == OP_SETATTR ? word(request, 0) : 0;
    return valid & (FATTR_ATIME | FATTR_MTIME) &&
           !(valid & FATTR_ATIME_NOW && valid & FATTR_MTIME_NOW);
}
