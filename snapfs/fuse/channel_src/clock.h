/* The time that only goes forward. Include it where _GNU_SOURCE is defined. */
#ifndef SNAPFS_CLOCK_H
#define SNAPFS_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

#endif
