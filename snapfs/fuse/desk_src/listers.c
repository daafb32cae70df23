/* Who lists directories, and whether what he was told of is looked up then. See desk.h.
 *
 * The kernel asks for attributes with every listing, and makes an inode of each name that has some: 1.1
 * KiB that a shell which expands a pattern, or an interpreter which looks for its modules, has no use
 * for. What looks at all it lists (ls -l, find, tar) does so in one directory after another. So of the
 * directories of an image a thread is given names alone, until half of those that it was given lately
 * were looked up, by whomever. What was made in the upper layer the kernel knows anyway.
 *
 * Two tables without chains: who comes later takes the place. To be wrong costs a lookup of each name,
 * or inodes. They are the session's thread's, as all that calls here.
 */
#include "desk.h"

#define PLACES 256 /* of each table; a power of two */
#define LATELY 512 /* names; what was before them counts half, and so on */

static struct lister {
    uint32_t pid;
    uint32_t given, looked_up;
} listers[PLACES];

static struct {
    uint64_t ino;
    uint32_t pid; /* who was last given names of this directory alone */
} listed[PLACES];

static size_t place(uint64_t number)
{
    return (size_t)((number * 0x9e3779b97f4a7c15u) >> 32) & (PLACES - 1);
}

int lister_looks(uint32_t pid)
{
    const struct lister *it = &listers[place(pid)];
    return !pid || (it->pid == pid && it->given && it->looked_up * 2 >= it->given);
}

void lister_given(uint32_t pid, uint64_t directory, uint32_t names)
{
    struct lister *it = &listers[place(pid)];
    if (it->pid != pid)
        *it = (struct lister){.pid = pid};
    while (it->given >= LATELY) {
        it->given /= 2;
        it->looked_up /= 2;
    }
    it->given += names;
    listed[place(directory)].ino = directory;
    listed[place(directory)].pid = pid;
}

void lister_looked_up(uint64_t directory)
{
    if (listed[place(directory)].ino != directory)
        return;
    struct lister *it = &listers[place(listed[place(directory)].pid)];
    if (it->pid == listed[place(directory)].pid && it->looked_up < it->given)
        it->looked_up++;
}
