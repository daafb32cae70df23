/* What the sources of the desks in the fast lane know of each other. */
#ifndef SNAPFS_DESKS_H
#define SNAPFS_DESKS_H

#include "../channel_src/hot.h"
#include "desk.h"

extern const struct hot_api *hot;

/* The desk of a node's tree; NULL when there is none, and for the second number of a file. */
Desk *desk_for(uint64_t nodeid);

/* Length of the name that a request has here; 0 when it is not whole, or no name of a file. */
size_t name_length(const char *from, size_t size);

/* contents.c */
int contents_begin(const struct hot_api *api);
/* ranges.c: copies of parts of files. */
int ranges_begin(const struct hot_api *api);

/* entries.c */
int entries_begin(const struct hot_api *api);
/* Whether somebody has a file open past us. */
bool is_open(uint64_t nodeid);
/* Let Python hear that a name went. */
void tell_removed(uint64_t parent, const Removal *it, const char *name, size_t length);

/* whiteout.c */

/* Remove a name of a lower file, or of a directory of the upper layer that shows nothing and has or had
 * something below. */
enum verdict hide_file(int fd, const struct in_header *request, Desk *desk, const char *name,
                       size_t length);
enum verdict hide_directory(int fd, const struct in_header *request, Desk *desk, const char *name,
                            size_t length);

#endif
