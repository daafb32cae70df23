#include <string.h>

#include "hot.h"

#define HANDLERS_PER_OPCODE 2

static hot_handler handlers[OPCODES][HANDLERS_PER_OPCODE];
static struct hot_count counts[OPCODES];
static bool is_on;

bool hot_register(uint32_t opcode, hot_handler handler)
{
    if (opcode >= OPCODES || handlers[opcode][HANDLERS_PER_OPCODE - 1])
        return false;
    memmove(&handlers[opcode][1], &handlers[opcode][0],
            sizeof(handlers[opcode]) - sizeof(handlers[opcode][0]));
    handlers[opcode][0] = handler;
    return true;
}

static enum verdict ask(int fd, const struct in_header *request)
{
    const void *body = request + 1;
    size_t size = request->len - sizeof(*request);
    for (int i = 0; i < HANDLERS_PER_OPCODE && handlers[request->opcode][i]; i++)
        if (handlers[request->opcode][i](fd, request, body, size) == ANSWERED)
            return ANSWERED;
    return COLD;
}

enum verdict hot_answer(int fd, const struct in_header *request)
{
    if (!is_on || request->opcode >= OPCODES)
        return COLD;
    /* nothing here knows extensions */
    enum verdict verdict = request->total_extlen ? COLD : ask(fd, request);
    if (verdict == ANSWERED)
        counts[request->opcode].answered++;
    else
        counts[request->opcode].left++;
    return verdict;
}

const struct hot_count *hot_counts(void)
{
    return counts;
}

void hot_reset(void)
{
    is_on = false;
    memset(counts, 0, sizeof(counts));
}

void hot_enable(bool on)
{
    is_on = on;
}
