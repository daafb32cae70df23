/* What libFuzzer's targets share: input that is taken byte by byte, and memory of a dead process. */
#ifndef SNAPFS_FUZZ_TARGET_H
#define SNAPFS_FUZZ_TARGET_H

#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define require(what) \
    do { \
        if (!(what)) { \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
            abort(); \
        } \
    } while (0)

struct input {
    const uint8_t *data;
    size_t size;
};

/* The next byte, 0 behind the end. */
static inline uint8_t next(struct input *input)
{
    if (!input->size)
        return 0;
    input->size--;
    return *input->data++;
}

/* Move so many bytes, or what there is, to a place that is zero. */
static inline void take(struct input *input, void *to, size_t size)
{
    if (size > input->size)
        size = input->size;
    memcpy(to, input->data, size);
    input->data += size;
    input->size -= size;
}

/* Memory that a dead process left. */
static inline int left(const void *memory, size_t size)
{
    int fd = memfd_create("left", MFD_CLOEXEC);
    require(fd >= 0);
    require(write(fd, memory, size) == (ssize_t)size);
    return fd;
}

#endif
