/* What Python has said about nodes, and who has them open: a hash table with chains. */
#include <stdlib.h>
#include <unistd.h>

#include "hot.h"

#define BUCKETS (1u << 14)

static struct hot_node *buckets[BUCKETS];
static size_t count;
static size_t opens; /* of all nodes; changed by nodes_opened and nodes_released */

static uint64_t *closed;
static size_t closed_count;
static size_t closed_room;

static struct hot_node **bucket(uint64_t nodeid)
{
    return &buckets[(nodeid * UINT64_C(0x9E3779B97F4A7C15)) >> 50];
}

struct hot_node *nodes_find(uint64_t nodeid)
{
    for (struct hot_node *node = *bucket(nodeid); node; node = node->next)
        if (node->nodeid == nodeid)
            return node;
    return NULL;
}

static void drop_fd(struct hot_node *node)
{
    if (node->fd >= 0)
        close(node->fd);
    node->fd = -1;
}

static void unlink_next(struct hot_node **link)
{
    struct hot_node *node = *link;
    *link = node->next;
    drop_fd(node);
    free(node);
    count--;
}

/* Take out those that nobody has open, or all of them. */
static void sweep(bool all)
{
    for (size_t i = 0; i < BUCKETS; i++) {
        struct hot_node **link = &buckets[i];
        while (*link) {
            if (all || !(*link)->opens)
                unlink_next(link);
            else
                link = &(*link)->next;
        }
    }
}

struct hot_node *nodes_get(uint64_t nodeid)
{
    struct hot_node *node = nodes_find(nodeid);
    if (node)
        return node;
    if (count >= MAX_NODES)
        sweep(false);
    node = calloc(1, sizeof(*node));
    if (!node)
        return NULL;
    node->nodeid = nodeid;
    node->fd = -1;
    node->next = *bucket(nodeid);
    *bucket(nodeid) = node;
    count++;
    return node;
}

static void remove_node(struct hot_node *node)
{
    struct hot_node **link = bucket(node->nodeid);
    while (*link != node)
        link = &(*link)->next;
    unlink_next(link);
}

uint32_t nodes_withdraw(struct hot_node *node, uint32_t offers)
{
    uint32_t left = node->opens;
    if (offers & OFFER_FD)
        drop_fd(node);
    node->offers &= ~offers;
    if (!node->offers && !left)
        remove_node(node);
    return left;
}

void nodes_withdraw_all(void)
{
    sweep(false);
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct hot_node *node = buckets[i]; node; node = node->next) {
            drop_fd(node);
            node->offers = 0;
        }
}

void nodes_clear(void)
{
    sweep(true);
    opens = 0;
    closed_count = 0;
}

size_t nodes_count(void)
{
    return count;
}

void nodes_opened(struct hot_node *node)
{
    node->opens++;
    opens++;
}

static bool note_closed(uint64_t nodeid)
{
    if (closed_count == closed_room) {
        size_t room = closed_room ? closed_room * 2 : 64;
        uint64_t *moved = realloc(closed, room * sizeof(*closed));
        if (!moved)
            return false;
        closed = moved;
        closed_room = room;
    }
    closed[closed_count++] = nodeid;
    return true;
}

bool nodes_released(struct hot_node *node)
{
    if (node->opens == 1 && node->tell && !note_closed(node->nodeid))
        return false;
    node->opens--;
    opens--;
    if (!node->opens && node->tell)
        node->tell = false;
    if (!node->opens && !node->offers)
        remove_node(node);
    return true;
}

size_t nodes_opens(void)
{
    return opens;
}

size_t nodes_take_closed(uint64_t *to, size_t room)
{
    size_t taken = closed_count < room ? closed_count : room;
    for (size_t i = 0; i < taken; i++)
        to[i] = closed[--closed_count];
    return taken;
}

bool nodes_any_closed(void)
{
    return closed_count > 0;
}
