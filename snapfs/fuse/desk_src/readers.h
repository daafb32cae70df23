/* Reads and others that have to wait for a disk, in threads that need no interpreter. */
#ifndef SNAPFS_READERS_H
#define SNAPFS_READERS_H

#include "../channel_src/hot.h"
#include "kept.h"

/* Read and reply in a thread; false when that cannot be, and nothing was done. */
bool readers_take(int device, const struct hot_api *api, uint64_t unique, struct kept *file,
                  uint64_t offset, uint32_t size);

/* Do something else that waits for a disk in such a thread; false when that cannot be. */
bool readers_do(void (*what)(void));

/* Return when all are done: the session ends. */
void readers_drain(void);

#endif
