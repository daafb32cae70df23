/* Further names of upper files that have no rules. See desk.h and overlay/create.py. */
#define _GNU_SOURCE
#include "desk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

int further_plan(const Desk *desk, uint64_t nodeid, uint64_t parent, const char *name, size_t length,
                 Further *it)
{
    it->card = card_find(desk, nodeid);
    if (!it->card || !it->card->is_upper || it->card->type == S_IFDIR)
        return 0;
    return names->has_node(desk->handed, nodeid) &&
           site_find(desk, parent, name, length, &it->site) &&
           card_stat(it->card, &it->before) == DONE_HERE &&
           is_plain(it->card->fd, it->card->path, &it->before);
}

int further_make(Further *it)
{
    const Card *card = it->card;
    const Site *site = &it->site;
    if (linkat(card->fd, card->path, site->fd, site->path, 0))
        return 0;
    if (fstatat(site->fd, site->path, &it->real, AT_SYMLINK_NOFOLLOW) == 0)
        return 1;
    unlinkat(site->fd, site->path, 0);
    return 0;
}
