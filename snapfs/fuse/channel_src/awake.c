/* Processors that do not halt while requests follow each other; see awake.py.
 *
 * The kernel ends the request with the descriptor that made it, so nothing outlives this process.
 */
#include <unistd.h>

#include "hot.h"

#define MANY 8 /* requests in a while: somebody asks one after the other, and waits most of the time */
#define WHILE_NS 2000000
#define WHILE_KEPT_MS 10
#define AT_ONCE_US 0
#define NO_WISH_US 2000000000 /* PM_QOS_CPU_LATENCY_DEFAULT_VALUE */

static int latency_fd = -1;
static bool is_kept;
static uint64_t requests, seen;
static int64_t looked_ns;

static void wish(int32_t latency_us)
{
    ssize_t written = write(latency_fd, &latency_us, sizeof(latency_us));
    is_kept = written == sizeof(latency_us) && latency_us == AT_ONCE_US;
}

void awake_by(int fd)
{
    latency_fd = fd;
    is_kept = false;
    looked_ns = 0;
}

void awake_count(void)
{
    requests++;
}

void awake_look(int64_t at_ns)
{
    int64_t while_ns = is_kept ? WHILE_KEPT_MS * 1000000 : WHILE_NS;
    int64_t passed_ns = at_ns - looked_ns;
    if (latency_fd < 0 || passed_ns < while_ns)
        return;
    bool is_busy = (int64_t)(requests - seen) >= passed_ns / while_ns * MANY;
    seen = requests;
    looked_ns = at_ns;
    if (is_busy != is_kept)
        wish(is_busy ? AT_ONCE_US : NO_WISH_US);
}

int awake_ms(void)
{
    return is_kept ? WHILE_KEPT_MS : -1;
}

void awake_end(void)
{
    if (is_kept)
        wish(NO_WISH_US);
}
