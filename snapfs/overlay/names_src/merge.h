/* Reading the directories of a stack; see merge.c. */
#ifndef SNAPFS_MERGE_H
#define SNAPFS_MERGE_H

#include "names.h"

typedef struct {
    uint64_t hash;
    uint64_t ino;
    uint32_t name;
    uint16_t position;
    uint8_t length;
    uint8_t kind; /* type >> 12; 0 is a whiteout */
} Raw;

typedef struct {
    Raw *raws;
    size_t count, room;
    char *names;
    size_t used, size;
    int hash_bits;
} Heap;

typedef struct {
    const char *path;
    uint64_t device;
    int xwhiteouts; /* empty files with an attribute are whiteouts too */
    int dot_whiteouts; /* .wh.NAME is a whiteout of NAME */
} Source;

/* Add a directory's entries; returns 0 or an errno. Needs no interpreter's lock. */
int heap_read(Heap *heap, const Source *source, uint16_t position);
/* Sort by hash, name and position; in one directory a whiteout comes after what it leaves. */
void heap_sort(Heap *heap);
void heap_free(Heap *heap);

#endif
