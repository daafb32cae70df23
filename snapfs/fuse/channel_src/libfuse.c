/* Functions of libfuse that this library takes the place of.
 *
 * pyfuse3 finds them here because the library is loaded with RTLD_GLOBAL before it. What is not ours
 * to change goes to libfuse's own function of the name, found in the libfuse that pyfuse3 brought.
 * Only the first members of libfuse's structures are read, which are the same from 3.0 to 3.18.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#include "channel.h"

#define EXPORTED __attribute__((visibility("default")))

typedef struct fuse_req *fuse_req_t;
struct fuse_session;

struct fuse_file_info {
    int32_t flags;
    uint32_t bits;
    uint32_t padding[2];
    uint64_t fh;
};

struct fuse_entry_param {
    uint64_t ino;
    uint64_t generation;
    struct stat attr;
    double attr_timeout;
    double entry_timeout;
};

struct fuse_buf {
    size_t size;
    int flags;
    void *mem;
};

static struct {
    int (*session_mount)(struct fuse_session *, const char *);
    void (*session_exit)(struct fuse_session *);
    void (*session_destroy)(struct fuse_session *);
    int (*session_receive_buf)(struct fuse_session *, struct fuse_buf *);
    int (*reply_buf)(fuse_req_t, const char *, size_t);
    int (*reply_open)(fuse_req_t, const struct fuse_file_info *);
    int (*reply_create)(fuse_req_t, const struct fuse_entry_param *, const struct fuse_file_info *);
    int (*reply_entry)(fuse_req_t, const struct fuse_entry_param *);
    int (*reply_attr)(fuse_req_t, const struct stat *, double);
    size_t (*add_direntry_plus)(fuse_req_t, char *, size_t, const char *,
                                const struct fuse_entry_param *, off_t);
} theirs;

static struct fuse_session *session;

/* Finding libfuse */

static int note_library(struct dl_phdr_info *info, size_t size, void *found)
{
    (void)size;
    const char *name = strrchr(info->dlpi_name, '/');
    if (!name || strncmp(name, "/libfuse3", 9) != 0)
        return 0;
    *(void **)found = dlopen(info->dlpi_name, RTLD_NOW | RTLD_NOLOAD);
    return *(void **)found != NULL;
}

const char *libfuse_find(void)
{
    const struct {
        const char *name;
        void *function;
    } wanted[] = {
        {"fuse_session_mount", &theirs.session_mount},
        {"fuse_session_exit", &theirs.session_exit},
        {"fuse_session_destroy", &theirs.session_destroy},
        {"fuse_session_receive_buf", &theirs.session_receive_buf},
        {"fuse_reply_buf", &theirs.reply_buf},
        {"fuse_reply_open", &theirs.reply_open},
        {"fuse_reply_create", &theirs.reply_create},
        {"fuse_reply_entry", &theirs.reply_entry},
        {"fuse_reply_attr", &theirs.reply_attr},
        {"fuse_add_direntry_plus", &theirs.add_direntry_plus},
    };
    void *library = NULL;
    dl_iterate_phdr(note_library, &library);
    if (!library)
        return "libfuse3";
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        void *function = dlsym(library, wanted[i].name);
        if (!function)
            return wanted[i].name;
        memcpy(wanted[i].function, &function, sizeof(function));
    }
    return NULL;
}

/* Whether all of them are known. pyfuse3 may come to any of ours first, where it was loaded before
 * us and had found others already. */
static bool is_found(void)
{
    return theirs.add_direntry_plus || !libfuse_find();
}

bool libfuse_is_ours(void)
{
    return session != NULL;
}

/* The session */

EXPORTED int fuse_session_mount(struct fuse_session *se, const char *mountpoint)
{
    if (!is_found())
        return -1;
    session = se;
    channel_reset();
    return theirs.session_mount(se, mountpoint);
}

EXPORTED void fuse_session_destroy(struct fuse_session *se)
{
    session = NULL;
    if (is_found())
        theirs.session_destroy(se);
}

EXPORTED int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
    if (!channel_is_routed())
        return is_found() ? theirs.session_receive_buf(se, buf) : -ENOSYS;
    int size = channel_hand_over(&buf->mem);
    if (size == 0)
        theirs.session_exit(se);
    if (size > 0) {
        buf->size = (size_t)size;
        buf->flags = 0;
    }
    return size;
}

/* Replies */

static void split_timeout(double timeout_s, uint64_t *seconds, uint32_t *nanoseconds)
{
    if (!(timeout_s > 0))
        timeout_s = 0;
    *seconds = timeout_s >= 0x1p63 ? UINT64_MAX : (uint64_t)timeout_s;
    double rest = timeout_s - floor(timeout_s);
    *nanoseconds = (uint32_t)(rest * 1e9);
}

static struct attr_out attributes(const struct stat *from)
{
    return (struct attr_out){
        .ino = VISIBLE_INO(from->st_ino),
        .size = (uint64_t)from->st_size,
        .blocks = (uint64_t)from->st_blocks,
        .atime = (uint64_t)from->st_atim.tv_sec,
        .mtime = (uint64_t)from->st_mtim.tv_sec,
        .ctime = (uint64_t)from->st_ctim.tv_sec,
        .atimensec = (uint32_t)from->st_atim.tv_nsec,
        .mtimensec = (uint32_t)from->st_mtim.tv_nsec,
        .ctimensec = (uint32_t)from->st_ctim.tv_nsec,
        .mode = from->st_mode,
        .nlink = (uint32_t)from->st_nlink,
        .uid = from->st_uid,
        .gid = from->st_gid,
        .rdev = (uint32_t)from->st_rdev,
        .blksize = (uint32_t)from->st_blksize,
    };
}

static struct entry_out entry(const struct fuse_entry_param *from)
{
    struct entry_out to = {
        .nodeid = from->ino,
        .generation = from->generation,
        .attr = attributes(&from->attr),
    };
    split_timeout(from->entry_timeout, &to.entry_valid, &to.entry_valid_nsec);
    split_timeout(from->attr_timeout, &to.attr_valid, &to.attr_valid_nsec);
    return to;
}

static struct open_out opened(const struct answer *answer)
{
    return (struct open_out){
        .fh = answer->fh, .open_flags = answer->open_flags, .backing_id = answer->backing_id};
}

EXPORTED int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *info)
{
    struct answer answer;
    if (!is_found())
        return -ENOSYS;
    if (!opens_take(info->fh, &answer))
        return theirs.reply_open(req, info);
    struct open_out out = opened(&answer);
    return theirs.reply_buf(req, (const char *)&out, sizeof(out));
}

/* The number to show, in the place of the node's, for as long as a reply is made of it. */
static ino_t hide_incarnation(const struct fuse_entry_param *param)
{
    ino_t whole = param->attr.st_ino;
    ((struct fuse_entry_param *)param)->attr.st_ino = VISIBLE_INO(whole);
    return whole;
}

static void restore_incarnation(const struct fuse_entry_param *param, ino_t whole)
{
    ((struct fuse_entry_param *)param)->attr.st_ino = whole;
}

EXPORTED int fuse_reply_create(fuse_req_t req, const struct fuse_entry_param *param,
                               const struct fuse_file_info *info)
{
    struct answer answer;
    if (!is_found())
        return -ENOSYS;
    if (opens_take(info->fh, &answer)) {
        struct create_out out = {.entry = entry(param), .open = opened(&answer)};
        return theirs.reply_buf(req, (const char *)&out, sizeof(out));
    }
    ino_t whole = hide_incarnation(param);
    int result = theirs.reply_create(req, param, info);
    restore_incarnation(param, whole);
    return result;
}

EXPORTED int fuse_reply_entry(fuse_req_t req, const struct fuse_entry_param *param)
{
    if (!is_found())
        return -ENOSYS;
    ino_t whole = hide_incarnation(param);
    int result = theirs.reply_entry(req, param);
    restore_incarnation(param, whole);
    return result;
}

EXPORTED int fuse_reply_attr(fuse_req_t req, const struct stat *attr, double timeout_s)
{
    if (!is_found())
        return -ENOSYS;
    struct stat shown = *attr;
    shown.st_ino = VISIBLE_INO(attr->st_ino);
    return theirs.reply_attr(req, &shown, timeout_s);
}

EXPORTED size_t fuse_add_direntry_plus(fuse_req_t req, char *buffer, size_t room, const char *name,
                                       const struct fuse_entry_param *param, off_t offset)
{
    if (!is_found())
        return 0;
    ino_t whole = hide_incarnation(param);
    size_t size = theirs.add_direntry_plus(req, buffer, room, name, param, offset);
    restore_incarnation(param, whole);
    return size;
}
