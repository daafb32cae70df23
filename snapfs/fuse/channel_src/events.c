/* What Python is to hear of before it does anything else, in the order in which it happened.
 *
 * Python takes all that there is before another request is answered. INVARIANT: what is in the queue
 * when one is answered, it has heard nothing of.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <string.h>

#include "hot.h"

#define MOST_EVENTS 4096 /* for Python to hear of; then it is asked itself */
#define MOST_AT_ONCE 8 /* of one request */
#define NAMES_AT_ONCE 2 /* of these: what is moved, and what that replaces */
#define MOST_NAME_BYTES (256u * 1024u)
#define NOTED 256
#define BUCKETS 1024
#define LINGER_MS 10 /* what waits for Python to hear that a node was forgotten takes space */

static struct hot_event events[MOST_EVENTS];
static size_t first, end; /* those that Python has not taken */
static uint16_t latest[BUCKETS];      /* behind the last one of a bucket's nodes; 0: none */
static uint16_t earlier[MOST_EVENTS]; /* ... and behind the one before each */
static char bytes[MOST_NAME_BYTES];
static size_t bytes_end;
static int64_t due_ms = -1;
static uint64_t ended;
static uint64_t noted[NOTED]; /* nodes of which Python will hear already, some of them */

static_assert(MOST_EVENTS <= UINT16_MAX, "places fit");

static void empty(void)
{
    first = end = bytes_end = 0;
    due_ms = -1;
    memset(latest, 0, sizeof(latest));
}

void events_reset(void)
{
    empty();
    memset(noted, 0, sizeof(noted));
    ended = 0;
}

bool events_any(void)
{
    return end > first;
}

int64_t events_due_ms(void)
{
    return due_ms;
}

size_t events_take(struct hot_event *to, size_t room)
{
    if (room)
        memset(noted, 0, sizeof(noted));
    size_t taken = 0;
    for (; taken < room && first < end; first++)
        if (events[first].kind != EVENT_NONE)
            to[taken++] = events[first];
    if (first == end)
        empty();
    return taken;
}

bool events_may_note(void)
{
    return end < MOST_EVENTS;
}

bool events_may_tell(void)
{
    return end + MOST_AT_ONCE <= MOST_EVENTS &&
           bytes_end + NAMES_AT_ONCE * NAME_MAX <= MOST_NAME_BYTES;
}

static uint16_t *bucket_of(uint64_t nodeid)
{
    return &latest[(size_t)(nodeid * UINT64_C(0x9E3779B97F4A7C15) >> 32) % BUCKETS];
}

/* The last event of a node before one of its bucket (a place behind it); NULL when there is none. */
static struct hot_event *last_before(uint64_t nodeid, uint16_t behind)
{
    for (; behind > first; behind = earlier[behind - 1])
        if (events[behind - 1].nodeid == nodeid && events[behind - 1].kind != EVENT_NONE)
            return &events[behind - 1];
    return NULL;
}

void events_add(const struct hot_event *event)
{
    uint16_t *bucket = bucket_of(event->nodeid);
    events[end] = *event;
    earlier[end++] = *bucket;
    *bucket = (uint16_t)end;
}

/* Whether Python will not hear of a node yet; it will from now on. */
static bool is_news(uint64_t nodeid)
{
    uint64_t *slot = &noted[nodeid % NOTED];
    bool is_known = *slot == nodeid;
    *slot = nodeid;
    return !is_known;
}

/* Once is enough until Python takes events. */
void events_note(uint64_t nodeid, const struct stat *before)
{
    if (is_news(nodeid))
        events_add_stat(EVENT_CHANGED, nodeid, before);
}

void events_add_stat(enum hot_event_kind kind, uint64_t nodeid, const struct stat *before)
{
    events_add(&(struct hot_event){.nodeid = nodeid,
                                   .ino = before->st_ino,
                                   .blocks = (uint64_t)before->st_blocks,
                                   .nlink = before->st_nlink,
                                   .kind = kind});
}

static void become_due(void)
{
    if (due_ms < 0)
        due_ms = now_ms() + LINGER_MS;
}

void events_tell(const struct hot_event *told)
{
    struct hot_event event = *told;
    if (told->length)
        event.name = memcpy(bytes + bytes_end, told->name, told->length);
    bytes_end += told->length;
    if (told->kind == EVENT_MADE || told->kind == EVENT_COPIED || told->kind == EVENT_LEFT_DATA)
        is_news(told->nodeid); /* no more: what is new counts with all that becomes of it */
    events_add(&event);
}

/* A removal that the kernel forgets the node of is one event. */
bool events_tell_forgotten(uint64_t nodeid, uint64_t lookups)
{
    struct hot_event *last = last_before(nodeid, *bucket_of(nodeid));
    if (last && last->kind == EVENT_REMOVED && !last->forgotten)
        last->forgotten = lookups;
    else if (events_may_tell())
        events_tell(
            &(struct hot_event){.nodeid = nodeid, .kind = EVENT_FORGOTTEN, .forgotten = lookups});
    else
        return false;
    become_due();
    return true;
}

/* The event that a file was made, if all that became of it since is in the queue too, up to its end: it has
 * lost its last name, and so many lookups are all that there were. NULL otherwise. */
static struct hot_event *whole_life(uint64_t nodeid, uint64_t lookups)
{
    struct hot_event *event = last_before(nodeid, *bucket_of(nodeid));
    if (!event || event->kind != EVENT_REMOVED || event->nlink != 1 || event->blocks >= BIG_BLOCKS)
        return NULL;
    for (; event; event = last_before(nodeid, earlier[event - events])) {
        if (event->kind == EVENT_FORGOTTEN || event->forgotten || event->kind == EVENT_PASSED)
            return NULL;
        if (event->kind != EVENT_MADE && event->kind != EVENT_LINKED)
            continue;
        if (!lookups--)
            return NULL;
        if (event->kind == EVENT_MADE)
            return event->mode == S_IFDIR ? NULL : event;
    }
    return NULL;
}

bool events_may_end(uint64_t nodeid, uint64_t lookups)
{
    return whole_life(nodeid, lookups) != NULL;
}

/* Who waits for a writer to leave hears that one has. */
void events_end(uint64_t nodeid, uint64_t lookups)
{
    struct hot_event *made = whole_life(nodeid, lookups), *event;
    for (uint16_t at = *bucket_of(nodeid); (event = last_before(nodeid, at)) != made;
         at = earlier[event - events])
        if (event->kind != EVENT_CLOSED)
            event->kind = EVENT_NONE;
    made->kind = EVENT_PASSED;
    made->length = 0;
    ended++;
}

uint64_t events_ended(void)
{
    return ended;
}
