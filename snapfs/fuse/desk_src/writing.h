/* Data of a copy on its way to the disk, in a thread that needs no interpreter. */
#ifndef SNAPFS_WRITING_H
#define SNAPFS_WRITING_H

#include <stdbool.h>

/* Begin to write a file out; 0, or -1 when that cannot be now. The caller may close it at any time:
 * the last close of what was removed waits for the disk, and is the thread's. */
int writing_begin(int file);
/* Whether one may begin: the last has ended. */
bool writing_is_free(void);
/* Whether what was begun last is written out, without an error, within `most_ns`. */
bool writing_ends_soon(long most_ns);

#endif
