/* Source: a regular file of a lower layer, held open for its copy-up. The file never changes. */
#include "copies.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define METACOPY "trusted.overlay.metacopy"
#define INO "trusted.overlay.snapfs.ino"
#define PROTATTR "trusted.overlay.protattr"
#define CARRIED (FS_SYNC_FL | FS_NOATIME_FL) /* overlayfs, OVL_COPY_FS_FLAGS_MASK */
#define FEW_BYTES 512
#define MOST_BYTES 65536 /* of names: the most that Linux gives */

typedef struct {
    PyObject_HEAD
    int fd;
    struct statx real;
    char *names; /* of its extended attributes, each with a 0 behind it */
    size_t names_bytes;
    char *content; /* all of it, once it was fetched */
} Source;

typedef struct {
    int work;
    const char *name;
    off_t size_bytes;
    bool keeps_mtime;
    const char *ino, *protattr;
} Wanted;

static int list_names(Source *self)
{
    char few[FEW_BYTES];
    ssize_t size = flistxattr(self->fd, few, sizeof few);
    if (size < 0 && errno == ERANGE) {
        self->names = malloc(MOST_BYTES);
        if (!self->names) {
            errno = ENOMEM;
            return -1;
        }
        size = flistxattr(self->fd, self->names, MOST_BYTES);
    } else if (size > 0) {
        self->names = malloc((size_t)size);
        if (!self->names) {
            errno = ENOMEM;
            return -1;
        }
        memcpy(self->names, few, (size_t)size);
    }
    if (size < 0 && errno != EOPNOTSUPP && errno != ENODATA)
        return -1;
    self->names_bytes = size < 0 ? 0 : (size_t)size;
    return 0;
}

static int open_source(Source *self, int at, const char *path)
{
    self->fd = openat(at, path, O_RDONLY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC);
    if (self->fd < 0)
        return -1;
    if (statx(self->fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &self->real))
        return -1;
    return list_names(self);
}

static void let_go(Source *self)
{
    if (self->fd >= 0)
        close(self->fd);
    self->fd = -1;
    free(self->content);
    free(self->names);
    self->content = self->names = NULL;
    self->names_bytes = 0;
}

static PyObject *source_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    int at;
    PyObject *path;
    if (!PyArg_ParseTuple(arguments, "iS:Source", &at, &path))
        return NULL;
    Source *self = (Source *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->fd = -1;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = open_source(self, at, PyBytes_AS_STRING(path));
    Py_END_ALLOW_THREADS
    if (failed) {
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void source_dealloc(Source *self)
{
    let_go(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *source_close(Source *self, PyObject *nothing)
{
    let_go(self);
    Py_RETURN_NONE;
}

/* Takes what is in memory, if that is all of it and without a hole. */
static bool fetch(Source *self)
{
    size_t size = self->real.stx_size;
    if (self->content || !size)
        return true;
    if (lseek(self->fd, 0, SEEK_HOLE) != (off_t)size || !(self->content = malloc(size)))
        return false;
    struct iovec whole = {self->content, size};
    if (preadv2(self->fd, &whole, 1, 0, RWF_NOWAIT) == (ssize_t)size)
        return true;
    free(self->content);
    self->content = NULL;
    return false;
}

static PyObject *source_fetch(Source *self, PyObject *nothing)
{
    bool is_here;
    Py_BEGIN_ALLOW_THREADS
    is_here = fetch(self);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(is_here);
}

static bool has_no_flags(int number)
{
    return number == ENOTTY || number == EOPNOTSUPP || number == EINVAL || number == ENOSYS;
}

/* Flags that the target's file system does not know are left out, as overlayfs does. */
static int carry_flags(int source, int target)
{
    int flags = 0, own = 0; /* the kernel fills an int, whatever the number of the call says */
    if (ioctl(source, FS_IOC_GETFLAGS, &flags))
        return has_no_flags(errno) ? 0 : -1;
    if (!(flags & CARRIED))
        return 0;
    if (!ioctl(target, FS_IOC_GETFLAGS, &own)) {
        own |= flags & CARRIED;
        if (!ioctl(target, FS_IOC_SETFLAGS, &own))
            return 0;
    }
    return has_no_flags(errno) ? 0 : -1;
}

static int set_times_as(const Source *self, int target, bool keeps_mtime)
{
    const struct statx *real = &self->real;
    struct timespec times[2] = {
        {real->stx_atime.tv_sec, real->stx_atime.tv_nsec},
        {real->stx_mtime.tv_sec, keeps_mtime ? real->stx_mtime.tv_nsec : UTIME_OMIT},
    };
    return futimens(target, times);
}

/* Owner before what a change of it takes away; mode after the ACL, which changes it; times last. */
static int fill(const Source *self, const Source *data, int target, const Wanted *wanted,
                bool *cloned)
{
    if (copy_content(data->fd, data->content, target, wanted->size_bytes, cloned) ||
        fchown(target, self->real.stx_uid, self->real.stx_gid) ||
        copy_attributes(self->fd, self->names, self->names_bytes, target) ||
        fchmod(target, self->real.stx_mode & 07777) ||
        fsetxattr(target, INO, wanted->ino, strlen(wanted->ino), 0))
        return -1;
    if (*wanted->protattr &&
        fsetxattr(target, PROTATTR, wanted->protattr, strlen(wanted->protattr), 0))
        return -1;
    if (carry_flags(self->fd, target))
        return -1;
    return set_times_as(self, target, wanted->keeps_mtime);
}

static int make_copy(const Source *self, const Source *data, const Wanted *wanted, bool *cloned)
{
    int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
    int target = openat(wanted->work, wanted->name, flags, 0600);
    if (target < 0 || !fill(self, data, target, wanted, cloned))
        return target;
    int number = errno;
    close(target);
    errno = number;
    return -1;
}

static PyObject *source_copy(Source *self, PyObject *arguments)
{
    Wanted wanted;
    Source *data;
    long long size_bytes;
    PyObject *name;
    int keeps_mtime;
    if (!PyArg_ParseTuple(arguments, "O!iSLpyy:copy", &SourceType, &data, &wanted.work, &name,
                          &size_bytes, &keeps_mtime, &wanted.ino, &wanted.protattr))
        return NULL;
    wanted.name = PyBytes_AS_STRING(name);
    wanted.size_bytes = size_bytes;
    wanted.keeps_mtime = keeps_mtime;
    bool cloned = false;
    int target;
    Py_BEGIN_ALLOW_THREADS
    target = make_copy(self, data, &wanted, &cloned);
    Py_END_ALLOW_THREADS
    if (target < 0)
        return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, name);
    return Py_BuildValue("iN", target, PyBool_FromLong(cloned));
}

static PyObject *source_size(Source *self, void *nothing)
{
    return PyLong_FromUnsignedLongLong(self->real.stx_size);
}

static PyObject *source_allocated(Source *self, void *nothing)
{
    return PyLong_FromUnsignedLongLong(self->real.stx_blocks * 512);
}

static PyObject *source_nlink(Source *self, void *nothing)
{
    return PyLong_FromUnsignedLong(self->real.stx_nlink);
}

static PyObject *source_attributes(Source *self, void *nothing)
{
    return PyLong_FromUnsignedLongLong(self->real.stx_attributes);
}

static PyObject *source_is_metacopy(Source *self, void *nothing)
{
    return PyBool_FromLong(has_name(self->names, self->names_bytes, METACOPY));
}

static PyGetSetDef properties[] = {
    {"size_bytes", (getter)source_size, NULL, NULL, NULL},
    {"allocated_bytes", (getter)source_allocated, NULL, NULL, NULL},
    {"nlink", (getter)source_nlink, NULL, NULL, NULL},
    {"attributes", (getter)source_attributes, NULL, NULL, NULL},
    {"is_metacopy", (getter)source_is_metacopy, NULL, NULL, NULL},
    {NULL},
};

static PyMethodDef methods[] = {
    {"fetch", (PyCFunction)source_fetch, METH_NOARGS, NULL},
    {"copy", (PyCFunction)source_copy, METH_VARARGS, NULL},
    {"close", (PyCFunction)source_close, METH_NOARGS, NULL},
    {NULL},
};

PyTypeObject SourceType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.overlay._copies.Source",
    .tp_basicsize = sizeof(Source),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = source_new,
    .tp_dealloc = (destructor)source_dealloc,
    .tp_getset = properties,
    .tp_methods = methods,
};
