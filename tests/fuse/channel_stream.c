/* Feeds the channel streams of requests, right ones and damaged ones: channel_stream SEED ROUNDS.
 *
 * A socket plays the descriptor. What the channel replies must be a well-formed reply to a request
 * that was sent; what it keeps is taken out as libfuse or Python would. Built with sanitizers.
 */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static const uint32_t opcodes[] = {OP_FORGET, OP_GETATTR,  OP_SETATTR,   OP_OPEN,      OP_READ,
                                   OP_WRITE,  OP_RELEASE,  OP_GETXATTR,  OP_LISTXATTR, OP_INTERRUPT,
                                   OP_BATCH_FORGET, OP_IOCTL, 1, 26, 44, 63,
                                   4096};

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
    uint64_t handle = answers_handle();
    switch (request->header.opcode) {
    case OP_RELEASE:
        if (below(4))
            memcpy(request->body, &handle, sizeof(handle));
        break;
    case OP_GETXATTR:
        if (below(2))
            memcpy(request->body + 8, below(2) ? "user.a\0\0\0\0" : "security.b", 11);
        break;
    case OP_READ: {
        uint64_t offset = below(3) ? below(9000) : random_number();
        uint32_t wanted = below(3) ? below(8192) : (uint32_t)random_number();
        memcpy(request->body + 8, &offset, sizeof(offset));
        memcpy(request->body + 16, &wanted, sizeof(wanted));
        break;
    }
    default:
        break;
    }
    if (!below(20))
        request->header.len = (uint32_t)random_number();
    return below(30) ? sizeof(request->header) + size : below(sizeof(*request));
}

static void change_offers(int file)
{
    struct hot_node *node = below(2) ? nodes_get(1 + below(40)) : nodes_find(1 + below(40));
    if (!node)
        return;
    if (below(3) == 0) {
        node->tell = below(2);
        nodes_withdraw(node, below(2) ? OFFER_ALL : below(OFFER_ALL + 1));
        return;
    }
    node->offers |= 1 + below(OFFER_ALL);
    if (node->offers & OFFER_FD && node->fd < 0)
        node->fd = fcntl(file, F_DUPFD_CLOEXEC, 0);
    if (!below(200))
        nodes_withdraw_all();
}

static void drain_replies(int fd)
{
    static char reply[BUFFER_BYTES + sizeof(struct out_header)];
    ssize_t size;
    while ((size = recv(fd, reply, sizeof(reply), MSG_DONTWAIT)) > 0) {
        struct out_header header;
        assert((size_t)size >= sizeof(header));
        memcpy(&header, reply, sizeof(header));
        assert(header.len == (size_t)size && header.error <= 0 && header.error > -4096);
        assert(!header.error || header.len == sizeof(header));
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

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    state = strtoull(argv[1], NULL, 10) * 2 + 1;
    long rounds = atol(argv[2]);
    int ends[2], file = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    static const char contents[8192] = "contents";
    assert(file >= 0 && write(file, contents, sizeof(contents)) == sizeof(contents));
    assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) == 0);
    channel_reset();
    assert(answers_register());
    hot_enable(true);
    channel_route(UINT64_C(1) << OP_WRITE | UINT64_C(1) << 44);
    void *libfuse_buffer = NULL;
    struct request request;
    for (long i = 0; i < rounds; i++) {
        size_t size = make(&request);
        if (size && send(ends[1], &request, size, 0) < 0)
            assert(errno == EAGAIN);
        hot_lock();
        change_offers(file);
        uint64_t closed[8];
        (void)nodes_take_closed(closed, 8);
        hot_unlock();
        enum received found;
        while ((found = channel_receive(ends[0])) != NOTHING)
            take(found, &libfuse_buffer);
        drain_replies(ends[1]);
    }
    /* READ needs a file system that can be read without waiting: not all can. */
    static const uint32_t answered[] = {OP_GETATTR, OP_OPEN, OP_RELEASE, OP_GETXATTR, OP_LISTXATTR};
    for (size_t i = 0; i < sizeof(answered) / sizeof(answered[0]); i++)
        assert(rounds < 10000 || hot_counts()[answered[i]] > 0);
    hot_reset();
    assert(nodes_count() == 0 && nodes_opens() == 0);
    free(libfuse_buffer);
    printf("%ld\n", rounds);
    return 0;
}
