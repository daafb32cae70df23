/* Where a dead worker said that nodes are, and a worker that goes on with it; for libFuzzer.
 *
 * The input is a head, entries that may lie anywhere in the table, then notes. A search must end,
 * what was noted is found, and the next process finds it too.
 */
#include "target.h"

#include "../../../snapfs/overlay/names_src/places.c"

#define MOST_BITS (FIRST_BITS + 3)
#define NUMBERS 256

static void make(struct input *input, uint8_t *memory, size_t *size)
{
    uint8_t first = next(input);
    int bits = FIRST_BITS + first % (MOST_BITS + 1 - FIRST_BITS);
    Head *head = (Head *)memory;
    head->magic = first & 0x08 ? OLD_MAGIC : MAGIC;
    head->old_bits = (uint64_t)bits;
    head->seal = sealed((uint64_t)bits, 0);
    if (first >= 0xF0)
        take(input, head, sizeof(*head));
    Whereabout *entries = (Whereabout *)(memory + table_at(bits));
    for (size_t count = next(input) * 2; count; count--) {
        size_t at = next(input), ino = next(input);
        at = first & 0x10 ? home(ino, bits) + at % 4 : at << (bits - FIRST_BITS);
        fill(&entries[at & (((size_t)1 << bits) - 1)], ino, next(input));
    }
    *size = table_at(bits + 1) - (first & 0x20 ? next(input) * sizeof(Whereabout) : 0);
}

static Places *begun(int fd)
{
    Places *places = calloc(1, sizeof(*places));
    require(places);
    places->fd = fd;
    require(!begin(places));
    return places;
}

static void end(Places *places)
{
    munmap(places->memory, places->size);
    free(places);
}

static void check(const Places *places, const uint16_t *noted)
{
    for (uint64_t ino = 1; ino < NUMBERS; ino++)
        require(!noted[ino] || places_get(places, ino) == noted[ino]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t memory[sizeof(Whereabout) << (MOST_BITS + 1)];
    struct input input = {data, size};
    size_t length;
    memset(memory, 0, sizeof(memory));
    make(&input, memory, &length);
    int fd = left(memory, length);
    Places *places = begun(fd);
    uint16_t noted[NUMBERS] = {0};
    while (input.size) {
        uint64_t ino = next(&input);
        uint16_t parent = next(&input);
        if (!ino)
            continue;
        if (parent)
            places_note(places, ino, parent);
        else
            places_drop(places, ino);
        noted[ino] = parent;
    }
    check(places, noted);
    Places *again = begun(fd);
    require(!again->damaged);
    check(again, noted);
    end(again);
    end(places);
    close(fd);
    return 0;
}
