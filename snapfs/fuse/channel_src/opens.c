/* Answers to OPEN and CREATE on their way from a handler to the reply.
 *
 * A handler puts one in just before it returns and the reply takes it out, so there are as many as
 * opens that wait for their turn: few. A plain array is searched.
 */
#include <stdlib.h>

#include "channel.h"

static struct answer *answers;
static size_t count;
static size_t capacity;

static struct answer *find(uint64_t fh)
{
    for (size_t i = 0; i < count; i++)
        if (answers[i].fh == fh)
            return &answers[i];
    return NULL;
}

static bool grow(void)
{
    size_t more = capacity ? capacity * 2 : 16;
    struct answer *moved = realloc(answers, more * sizeof(*answers));
    if (!moved)
        return false;
    answers = moved;
    capacity = more;
    return true;
}

bool opens_put(const struct answer *answer)
{
    struct answer *slot = find(answer->fh);
    if (!slot) {
        if (count == capacity && !grow())
            return false;
        slot = &answers[count++];
    }
    *slot = *answer;
    return true;
}

bool opens_take(uint64_t fh, struct answer *answer)
{
    struct answer *slot = find(fh);
    if (!slot)
        return false;
    *answer = *slot;
    *slot = answers[--count];
    return true;
}
