/* What the files of snapfs.overlay._copies say to each other.
 *
 * Calls of the system go one by one through libc's symbols: a test can stand before any of them.
 */
#ifndef SNAPFS_COPIES_H
#define SNAPFS_COPIES_H

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <sys/types.h>

/* Copies a file's data, holes as holes, or shares it. Sets errno and returns -1 on an error.
 *
 * `content` is all of it, if that was read before and has no holes.
 */
int copy_content(int source, const char *content, int target, off_t size_bytes, bool *cloned);

/* Gives `target` those of the attributes called `names` that are a user's. Sets errno. */
int copy_attributes(int source, const char *names, size_t names_bytes, int target);

/* Whether a name in such a list is there. */
bool has_name(const char *names, size_t names_bytes, const char *name);

extern PyTypeObject SourceType;
extern PyMethodDef calls[];

#endif
