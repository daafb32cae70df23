/* Feeds the channel streams of requests, right ones and damaged ones: channel_stream SEED ROUNDS.
 *
 * A socket plays the descriptor. What the channel replies must be a well-formed reply to a request
 * that was sent; what it keeps is taken out as libfuse or Python would. Built with sanitizers.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../../snapfs/fuse/channel_src/hot.h"

static uint64_t state;

static uint64_t random_number(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint32_t below(uint32_t limit)
{
    return (uint32_t)(random_number() % limit);
}

static const uint32_t opcodes[] = {OP_FORGET, OP_GETATTR, OP_SETATTR,   OP_OPEN,   OP_OPEN,
                                   OP_OPEN,   OP_WRITE,   OP_RELEASE,   OP_RELEASE, OP_INTERRUPT,
                                   OP_IOCTL,  1,          26,           44,        63,
                                   4096};

static struct opened_table *table;
static int journal;

struct request {
    struct in_header header;
    unsigned char body[512];
};

/* Make a request whose body may be anything, often something that is nearly right. */
static size_t make(struct request *request)
{
    size_t size = below(8) ? 8 + 8 * below(9) : below(sizeof(request->body));
    for (size_t i = 0; i < sizeof(request->body); i++)
        request->body[i] = below(3) ? 0 : (unsigned char)random_number();
    request->header = (struct in_header){
        .len = (uint32_t)(sizeof(request->header) + size),
        .opcode = opcodes[below(sizeof(opcodes) / sizeof(opcodes[0]))],
        .unique = 2 + 2 * (uint64_t)below(1000),
        .nodeid = 1 + below(40),
        .total_extlen = below(16) ? 0 : (uint16_t)random_number(),
    };
    uint64_t handle = PASSING_HANDLE;
    uint32_t flags = below(2) ? O_RDONLY : O_RDWR;
    if (!below(50))
        request->header.unique |= UINT64_C(1) << 63;
    switch (request->header.opcode) {
    case OP_RELEASE:
        if (below(8))
            memcpy(request->body, &handle, sizeof(handle));
        if (below(8))
            memcpy(request->body + 8, &flags, sizeof(flags));
        break;
    case OP_OPEN:
        if (below(8))
            memcpy(request->body, &flags, sizeof(flags));
        break;
    case OP_IOCTL: {
        uint32_t cmd = TCGETS;
        memcpy(request->body + 12, &cmd, sizeof(cmd));
        break;
    }
    default:
        break;
    }
    if (!below(20))
        request->header.len = (uint32_t)random_number();
    return below(30) ? sizeof(request->header) + size : below(sizeof(*request));
}

/* Do what Python does in between. */
static void change_table(void)
{
    struct hot_event taken[8];
    (void)events_take(taken, below(9));
    uint64_t nodeid = 1 + below(40);
    struct opened *entry = opened_find(table, nodeid);
    struct opened_record record = {.nodeid = nodeid, .ino = nodeid, .kind = 1 + below(3)};
    record.backing_id = record.kind == OPENED_CACHED ? 0 : (int32_t)(1 + below(9));
    struct opened *going = NULL;
    switch (below(6)) {
    case 0:
        if (entry)
            opened_remove(table, entry);
        break;
    case 1:
        if (entry)
            entry->may_read = entry->is_kept = below(2);
        break;
    case 2:
        if (entry)
            (void)opened_enter(table, entry, below(2), below(9), below(2) ? 0 : random_number());
        break;
    case 3:
        if (entry && opened_opens(entry) && opened_leave(table, entry, below(2), 0) &&
            !opened_opens(entry))
            going = opened_keep(table, entry);
        if (going)
            opened_remove(table, going);
        break;
    default:
        if (!entry && (entry = opened_add(table, &record)))
            entry->may_read = entry->is_kept = record.kind != OPENED_CACHED;
    }
}

/* As if the process had been killed: the next one finds the same counts. */
static void begin_anew(void)
{
    uint64_t total = opened_total(table), sum = 0;
    size_t count = opened_count(table);
    opened_end(table);
    table = opened_begin(journal, 16);
    assert(table && opened_total(table) == total && opened_count(table) == count);
    assert(!opened_damaged(table));
    for (struct opened *it = NULL; (it = opened_each(table, it));) {
        assert(opened_writers(it) <= opened_opens(it) && it->is_inherited);
        sum += opened_opens(it);
        it->is_inherited = below(4) == 0;
        it->may_read = it->is_kept = it->record->kind != OPENED_CACHED;
    }
    assert(sum == total);
    passes_use(table);
}

static void drain_replies(int fd)
{
    static char reply[BUFFER_BYTES + sizeof(struct out_header)];
    ssize_t size;
    while ((size = recv(fd, reply, sizeof(reply), MSG_DONTWAIT)) > 0) {
        struct out_header header;
        assert((size_t)size >= sizeof(header));
        memcpy(&header, reply, sizeof(header));
        assert(header.len == (size_t)size);
        if (header.unique == 0) /* a notice */
            continue;
        assert(header.error <= 0 && header.error > -4096);
        assert(!header.error || header.len == sizeof(header));
        header.unique &= ~(UINT64_C(1) << 63);
        assert(header.unique >= 2 && header.unique <= 2000);
    }
}

/* Take what waits, as its receiver would. */
static void take(enum received found, void **libfuse_buffer)
{
    if (found == FOR_LIBFUSE) {
        if (channel_waiting())
            (void)channel_kills_set_id(channel_waiting());
        int size = channel_hand_over(libfuse_buffer);
        assert(size > 0);
        assert(((struct in_header *)*libfuse_buffer)->len == (uint32_t)size);
    } else if (found == FOR_US) {
        assert(channel_request()->opcode < OPCODES);
    }
}

/* Let Python hear of as much as there is room for, with the longest names, two at once. */
static void tell_all(void)
{
    char name[NAME_MAX];
    memset(name, 'n', sizeof(name));
    const struct hot_event event = {.kind = EVENT_MOVED, .name = name, .length = sizeof(name)};
    struct hot_event heard[64];
    size_t told = 1, count;
    hot_api.tell(&event);
    for (; hot_api.may_tell(); told += 2) {
        hot_api.tell(&event);
        hot_api.tell(&event);
    }
    while ((count = events_take(heard, 64)))
        for (; count; count--, told--)
            assert(memcmp(heard[count - 1].name, name, sizeof(name)) == 0);
    assert(!told && !events_any());
}

/* A file that ends before Python hears of it: it hears that there was one, and that a writer left. */
static void live_and_end(void)
{
    static const enum hot_event_kind kinds[] = {EVENT_MADE, EVENT_OPENED, EVENT_LINKED,
                                                EVENT_CLOSED, EVENT_REMOVED};
    const uint64_t nodeid = 1 + below(40), other = nodeid + 1024;
    struct hot_event heard[16];
    while (events_take(heard, 16))
        ;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        assert(!hot_api.may_end(nodeid, 2));
        hot_api.tell(&(struct hot_event){.nodeid = nodeid, .kind = kinds[i], .nlink = 1});
        hot_api.tell(&(struct hot_event){.nodeid = other, .kind = EVENT_LINKED});
    }
    assert(!hot_api.may_end(nodeid, 1) && !hot_api.may_end(other, 9));
    if (below(2)) {
        assert(hot_api.tell_forgotten(nodeid, 1) && !hot_api.may_end(nodeid, 2));
        assert(hot_api.tell_forgotten(nodeid, 1));
        assert(events_take(heard, 16) == 11 && heard[8].forgotten == 1);
        assert(heard[10].kind == EVENT_FORGOTTEN && heard[10].forgotten == 1);
        return;
    }
    hot_api.end(nodeid, 2);
    assert(!hot_api.may_end(nodeid, 2) && events_take(heard, 16) == 7);
    assert(heard[0].kind == EVENT_PASSED && heard[4].kind == EVENT_CLOSED);
    assert(!events_any());
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    state = strtoull(argv[1], NULL, 10) * 2 + 1;
    long rounds = atol(argv[2]);
    int ends[2];
    journal = memfd_create("journal", MFD_CLOEXEC);
    assert(journal >= 0);
    assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) == 0);
    channel_reset();
    assert(answers_register() && passes_register());
    table = opened_begin(journal, 16);
    assert(table);
    passes_use(table);
    hot_enable(true);
    channel_route(UINT64_C(1) << OP_WRITE | UINT64_C(1) << 44);
    void *libfuse_buffer = NULL;
    struct request request;
    for (long i = 0; i < rounds; i++) {
        size_t size = make(&request);
        if (size && send(ends[1], &request, size, 0) < 0)
            assert(errno == EAGAIN);
        change_table();
        if (!below(50))
            live_and_end();
        if (!below(500))
            begin_anew();
        enum received found;
        while ((found = channel_receive(ends[0])) != NOTHING)
            take(found, &libfuse_buffer);
        drain_replies(ends[1]);
    }
    static const uint32_t answered[] = {OP_OPEN, OP_RELEASE, OP_IOCTL};
    for (size_t i = 0; i < sizeof(answered) / sizeof(answered[0]); i++)
        assert(rounds < 10000 || hot_counts()[answered[i]].answered > 0);
    passes_use(table);
    tell_all();
    hot_reset();
    passes_use(NULL);
    opened_end(table);
    free(libfuse_buffer);
    printf("%ld\n", rounds);
    return 0;
}
