/* Cards: where the real file of a node is, for nodes that Python keeps. See desk.h.
 *
 * A card is a hint: what is found by its path counts only if it is the file that was noted, so
 * nobody needs to take cards back when a directory moves or a name goes.
 */
#define _GNU_SOURCE
#include "desk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define MOST_CARDS (1u << 16) /* of one tree; then all go, and are made again as they are needed */

static Card **bucket(const Desk *desk, uint64_t ino)
{
    return &desk->cards[(size_t)((ino * 0x9e3779b97f4a7c15u) >> 32) & (desk->card_buckets - 1)];
}

Card *card_find(const Desk *desk, uint64_t ino)
{
    if (!desk->card_buckets)
        return NULL;
    Card *card = *bucket(desk, ino);
    while (card && card->ino != ino)
        card = card->next;
    return card;
}

static void card_free(Desk *desk, Card *card)
{
    if (card->room)
        names->unpin(desk->handed, card->room);
    else
        Py_XDECREF(card->index);
    free(card);
}

void card_drop(Desk *desk, uint64_t ino)
{
    if (!desk->card_buckets)
        return;
    Card **link = bucket(desk, ino);
    while (*link && (*link)->ino != ino)
        link = &(*link)->next;
    if (!*link)
        return;
    Card *card = *link;
    *link = card->next;
    card_free(desk, card);
    desk->card_count--;
}

void cards_clear(Desk *desk)
{
    for (size_t i = 0; i < desk->card_buckets; i++)
        for (Card *card = desk->cards[i], *next; card; card = next) {
            next = card->next;
            card_free(desk, card);
        }
    free(desk->cards);
    desk->cards = NULL;
    desk->card_buckets = desk->card_count = 0;
}

static int widen(Desk *desk)
{
    size_t count = desk->card_buckets ? desk->card_buckets * 4 : 64;
    Card **cards = calloc(count, sizeof(*cards));
    if (!cards)
        return 0;
    Card **old = desk->cards;
    size_t old_count = desk->card_buckets;
    desk->cards = cards;
    desk->card_buckets = count;
    for (size_t i = 0; i < old_count; i++)
        for (Card *card = old[i], *next; card; card = next) {
            next = card->next;
            Card **link = bucket(desk, card->ino);
            card->next = *link;
            *link = card;
        }
    free(old);
    return 1;
}

static int is_kind(const Card *card, const struct stat *real)
{
    return (real->st_mode & S_IFMT) == card->type;
}

/* Put in a card that is not there, with a copy of the path; 0 when memory is short. */
static int insert(Desk *desk, const Card *wanted, const char *path, const struct stat *real)
{
    if (desk->card_count >= desk->card_buckets && !widen(desk) && !desk->card_buckets)
        return 0;
    size_t length = strlen(path), more = wanted->data ? strlen(wanted->data) + 1 : 0;
    struct stat data = {0};
    if (wanted->data && fstatat(wanted->data_fd, wanted->data, &data, AT_SYMLINK_NOFOLLOW))
        return 0;
    Card *card = malloc(sizeof(*card) + length + 1 + more);
    if (!card)
        return 0;
    Card **link = bucket(desk, wanted->ino);
    *card = *wanted;
    card->next = *link;
    card->device = real->st_dev;
    card->real = real->st_ino;
    card->moves = desk->handed->moves;
    if (card->room)
        names->pin(card->room);
    else
        Py_XINCREF(card->index);
    memcpy(card->path, path, length + 1);
    card->blocks = (uint64_t)data.st_blocks;
    if (wanted->data)
        card->data = memcpy(card->path + length + 1, wanted->data, more);
    *link = card;
    desk->card_count++;
    return 1;
}

/* Whether a file is noted by a name that it still has. That one stays: of several names the latest is
 * noted (card_move), and programs that give files a second one remove the first. */
static int is_good(const Desk *desk, const Card *wanted)
{
    const Card *card = card_find(desk, wanted->ino);
    struct stat real;
    return card && card->type == wanted->type && card->type != S_IFDIR && card->fd == wanted->fd &&
           card->is_upper == wanted->is_upper && !card->data == !wanted->data &&
           card->moves == desk->handed->moves &&
           card_stat(card, &real) == DONE_HERE;
}

int card_put(Desk *desk, const Card *wanted, const char *path)
{
    struct stat real;
    if (is_good(desk, wanted))
        return 1;
    if (fstatat(wanted->fd, path, &real, AT_SYMLINK_NOFOLLOW) || !is_kind(wanted, &real))
        return 1; /* nothing to note */
    card_drop(desk, wanted->ino);
    if (desk->card_count >= MOST_CARDS)
        cards_clear(desk);
    return insert(desk, wanted, path, &real);
}

int card_add(Desk *desk, uint64_t ino, const Site *site, const struct stat *real, const Data *data)
{
    const Card wanted = {.ino = ino,
                         .fd = site->fd,
                         .parent = site->parent,
                         .is_upper = 1,
                         .data = data ? data->path : NULL,
                         .data_fd = data ? data->fd : -1,
                         .type = real->st_mode & S_IFMT};
    return !card_find(desk, ino) && desk->card_count < MOST_CARDS &&
           insert(desk, &wanted, site->path, real);
}

int card_add_merged(Desk *desk, Room *room, const Site *site, const struct stat *real)
{
    const Card wanted = {.ino = room->ino,
                         .fd = site->fd,
                         .is_upper = 1,
                         .type = S_IFDIR,
                         .index = room->index,
                         .room = room};
    return desk->card_count < MOST_CARDS && insert(desk, &wanted, site->path, real);
}

void card_move(Desk *desk, uint64_t ino, const Site *site, const struct stat *real)
{
    const Card *card = card_find(desk, ino);
    if (card && card->index)
        return; /* of a directory, which is Python's to drop */
    card_drop(desk, ino);
    card_add(desk, ino, site, real, NULL);
}

static int is_called(const Card *card, const char *name, size_t length)
{
    size_t whole = strlen(card->path);
    const char *last = card->path + whole - length;
    return whole >= length && memcmp(last, name, length) == 0 &&
           (whole == length || last[-1] == '/');
}

/* A name that was noted was known to Python, which knows of all that became of it since. Only a move of a
 * directory can put another name in its place: one that nobody has looked up. */
uint64_t card_other_name(const Desk *desk, uint64_t ino, uint64_t parent, const char *name,
                         size_t length)
{
    const Card *card = card_find(desk, ino);
    struct stat real;
    if (!card || !card->is_upper || card->moves != desk->handed->moves)
        return 0;
    if (card->parent == parent && is_called(card, name, length))
        return 0;
    return card_stat(card, &real) == DONE_HERE ? card->parent : 0;
}

int say_path(char full[PATH_MAX], int at, const char *path)
{
    int length = snprintf(full, PATH_MAX, "/proc/self/fd/%d/%s", at, path);
    return length < PATH_MAX ? length : 0;
}

int card_attribute(const Card *card, const char *name)
{
    char path[PATH_MAX];
    if (!say_path(path, card->fd, card->path))
        return ENAMETOOLONG;
    return lgetxattr(path, name, NULL, 0) >= 0 ? 0 : errno;
}

int card_stat(const Card *card, struct stat *real)
{
    if (fstatat(card->fd, card->path, real, AT_SYMLINK_NOFOLLOW))
        return LEFT_TO_PYTHON;
    if (!is_kind(card, real) || real->st_ino != card->real || real->st_dev != card->device)
        return LEFT_TO_PYTHON;
    return DONE_HERE;
}
