/* Opens each argument by io_uring, all of them in one call, and writes what is in them, a line each.
 * Ends with 77 where there is no io_uring to be had. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 64

static void *map(int ring, size_t size, off_t what)
{
    void *found = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, what);
    if (found == MAP_FAILED)
        err(1, "mmap");
    return found;
}

int main(int count, char **arguments)
{
    struct io_uring_params made = {0};
    int ring = (int)syscall(__NR_io_uring_setup, MOST, &made);
    if (ring < 0)
        return 77;
    uint32_t wanted = (uint32_t)count - 1;
    char *asked = map(ring, made.sq_off.array + made.sq_entries * sizeof(uint32_t),
                      IORING_OFF_SQ_RING);
    char *done = map(ring, made.cq_off.cqes + made.cq_entries * sizeof(struct io_uring_cqe),
                     IORING_OFF_CQ_RING);
    struct io_uring_sqe *entries = map(ring, MOST * sizeof(*entries), IORING_OFF_SQES);
    for (uint32_t i = 0; i < wanted && i < MOST; i++) {
        entries[i] = (struct io_uring_sqe){.opcode = IORING_OP_OPENAT,
                                           .fd = AT_FDCWD,
                                           .addr = (uintptr_t)arguments[i + 1],
                                           .open_flags = O_RDONLY};
        ((uint32_t *)(asked + made.sq_off.array))[i] = i;
    }
    __atomic_store_n((uint32_t *)(asked + made.sq_off.tail), wanted, __ATOMIC_RELEASE);
    if (syscall(__NR_io_uring_enter, ring, wanted, wanted, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        err(1, "io_uring_enter");
    for (uint32_t i = 0; i < wanted; i++) {
        char text[100];
        ssize_t size = -1;
        int file = ((struct io_uring_cqe *)(done + made.cq_off.cqes))[i].res;
        if (file < 0 || (size = read(file, text, sizeof(text))) < 0)
            errx(1, "error %d", -file);
        printf("%.*s\n", (int)size, text);
    }
    return 0;
}
