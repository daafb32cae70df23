/* What libfuse does not hand on of a request: that its caller may not keep set-id bits.
 *
 * With HANDLE_KILLPRIV_V2 the kernel says so of each write, truncation and truncating open.
 */
#include <string.h>

#include "channel.h"

enum {
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
