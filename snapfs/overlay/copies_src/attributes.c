/* Extended attributes of a copy (xattrs.py says which names are whose). */
#include "copies.h"

#include <errno.h>
#include <string.h>
#include <sys/xattr.h>

#define OWN "trusted.overlay."
#define ESCAPED "trusted.overlay.overlay."
#define VALUE_BYTES 65536 /* the most that Linux takes */

static bool starts_with(const char *name, const char *start)
{
    return !strncmp(name, start, strlen(start));
}

static bool is_own(const char *name)
{
    return starts_with(name, OWN) && !starts_with(name, ESCAPED);
}

bool has_name(const char *names, size_t names_bytes, const char *name)
{
    for (const char *at = names; at < names + names_bytes; at += strlen(at) + 1)
        if (!strcmp(at, name))
            return true;
    return false;
}

/* What the target cannot hold is left out unless access rights hang on it, as overlayfs does. */
static int copy_one(int source, const char *name, int target)
{
    char value[VALUE_BYTES];
    ssize_t size = fgetxattr(source, name, value, sizeof value);
    if (size < 0)
        return errno == ENODATA || errno == EOPNOTSUPP ? 0 : -1;
    if (!fsetxattr(target, name, value, (size_t)size, 0))
        return 0;
    bool needed = starts_with(name, "security.") || starts_with(name, "system.posix_acl_");
    return needed || errno != EOPNOTSUPP ? -1 : 0;
}

int copy_attributes(int source, const char *names, size_t names_bytes, int target)
{
    for (const char *at = names; at < names + names_bytes; at += strlen(at) + 1)
        if (!is_own(at) && copy_one(source, at, target))
            return -1;
    return 0;
}
