/* Opens of files that nobody has open: whether the kernel may have the file itself. See desk.h. */
#define _GNU_SOURCE
#include "../../overlay/copies_src/attributes.h"
#include "desk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

int file_holds_data(int file, const struct stat *real)
{
    if (real->st_size == 0)
        return 1;
    if (real->st_blocks * 512 >= real->st_size &&
        (lseek(file, 0, SEEK_DATA) >= 0 || errno != ENXIO))
        return 1;
    return fgetxattr(file, METACOPY, NULL, 0) < 0 && errno == ENODATA;
}

/* What was opened through this descriptor can be written by nobody (sealing.py). */
static int is_sealed(int file)
{
    struct statvfs found;
    return fstatvfs(file, &found) == 0 && found.f_flag & ST_RDONLY;
}

/* Of a metadata-only copy that is still what was noted: it is read below. */
static int data_place(const Card *card, char *path, int *fd, int *is_upper)
{
    struct stat real;
    if (card_stat(card, &real) != DONE_HERE || strlen(card->data) >= PATH_MAX)
        return 0;
    strcpy(path, card->data);
    *fd = card->data_fd;
    *is_upper = 0;
    return 1;
}

int file_place(const Desk *desk, uint64_t ino, char *path, int *fd, int *is_upper)
{
    Room *room;
    uint32_t slot;
    const Card *card = card_find(desk, ino);
    *is_upper = card && card->is_upper;
    if (card && card->type != S_IFREG)
        return 0;
    if (card && card->data)
        return data_place(card, path, fd, is_upper);
    if (!card && (!names->guest(desk->handed, ino, &room, &slot) ||
                  (room->index->entries[slot].kind & 0xf) != REGULAR))
        return 0;
    return desk_path(desk, ino, path, fd) == DONE_HERE;
}

static int is_named_as_log(const char *path)
{
    size_t length = strlen(path);
    return strncmp(path, "var/log/", 8) == 0 ||
           (length >= 4 && strcmp(path + length - 4, ".log") == 0);
}

/* As passing.py has it: who reads such a lower file through us sees what it gets. */
static int may_be_a_log(const Desk *desk, const char *path, const struct stat *real)
{
    return desk->keeps_in >= 0 && (real->st_size == 0 || is_named_as_log(path));
}

int first_open(const Desk *desk, uint64_t ino, struct stat *real, int *is_upper)
{
    char path[PATH_MAX];
    int fd;
    const Card *card = card_find(desk, ino);
    if (card && card->data)
        return -1; /* it gets its data first */
    if (!file_place(desk, ino, path, &fd, is_upper) || (*is_upper && !desk->passes_upper))
        return -1;
    int flags = O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | (*is_upper ? 0 : O_NOATIME);
    int file = openat(fd, path, flags);
    if (file < 0)
        return -1;
    if (fstat(file, real) == 0 && S_ISREG(real->st_mode) && file_holds_data(file, real) &&
        (*is_upper || (is_sealed(file) && !may_be_a_log(desk, path, real))))
        return file;
    close(file);
    return -1;
}

int is_protected(const Desk *desk, const Card *card)
{
    return desk->handed->protects && card_attribute(card, PROTATTR) != ENODATA;
}

int is_protected_file(const Desk *desk, int file)
{
    return desk->handed->protects && (fgetxattr(file, PROTATTR, NULL, 0) >= 0 || errno != ENODATA);
}

int first_may_write(const Desk *desk, uint64_t ino, struct stat *real)
{
    const Card *card = card_find(desk, ino);
    if (!desk->takes_writers || !card || !card->is_upper || card->type != S_IFREG || card->data)
        return 0;
    if (card_stat(card, real) != DONE_HERE || real->st_mode & SET_ID)
        return 0;
    return !is_protected(desk, card);
}
