/* What the sources of the desks in the fast lane know of each other. */
#ifndef SNAPFS_DESKS_H
#define SNAPFS_DESKS_H

#include "../channel_src/hot.h"
#include "desk.h"

extern const struct hot_api *hot;

/* The desk of a node's tree; NULL when there is none, and for the second number of a file. */
Desk *desk_for(uint64_t nodeid);

/* contents.c */
int contents_begin(const struct hot_api *api);

/* entries.c */
int entries_begin(const struct hot_api *api);

#endif
