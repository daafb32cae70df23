/* Calls of Linux that the os module does not offer, and copies of data (syscalls.py). */
#include "copies.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

static PyObject *call_rename(PyObject *module, PyObject *arguments)
{
    int old_fd, new_fd, failed;
    unsigned flags = 0;
    PyObject *old, *new;
    if (!PyArg_ParseTuple(arguments, "iSiS|I:rename", &old_fd, &old, &new_fd, &new, &flags))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = renameat2(old_fd, PyBytes_AS_STRING(old), new_fd, PyBytes_AS_STRING(new), flags);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, old);
    Py_RETURN_NONE;
}

/* Python's numbers hold more nanoseconds than 64 bits do. */
static int to_time(PyObject *value, struct timespec *time)
{
    if (value == Py_None) {
        *time = (struct timespec){0, UTIME_OMIT};
        return 0;
    }
    PyObject *billion = PyLong_FromLong(1000000000);
    PyObject *parts = billion ? PyNumber_Divmod(value, billion) : NULL;
    Py_XDECREF(billion);
    if (!parts)
        return -1;
    time->tv_sec = PyLong_AsLong(PyTuple_GET_ITEM(parts, 0));
    time->tv_nsec = PyLong_AsLong(PyTuple_GET_ITEM(parts, 1));
    Py_DECREF(parts);
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *call_set_times(PyObject *module, PyObject *arguments)
{
    int fd, failed;
    PyObject *path, *atime, *mtime;
    struct timespec times[2];
    if (!PyArg_ParseTuple(arguments, "iSOO:set_times", &fd, &path, &atime, &mtime) ||
        to_time(atime, &times[0]) || to_time(mtime, &times[1]))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = utimensat(fd, PyBytes_AS_STRING(path), times, AT_SYMLINK_NOFOLLOW);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
    Py_RETURN_NONE;
}

static PyObject *call_set_times_of(PyObject *module, PyObject *arguments)
{
    int fd, failed;
    PyObject *atime, *mtime;
    struct timespec times[2];
    if (!PyArg_ParseTuple(arguments, "iOO:set_times_of", &fd, &atime, &mtime) ||
        to_time(atime, &times[0]) || to_time(mtime, &times[1]))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = futimens(fd, times);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *call_copy_data(PyObject *module, PyObject *arguments)
{
    int source, target, failed;
    long long size_bytes;
    bool cloned;
    if (!PyArg_ParseTuple(arguments, "iiL:copy_data", &source, &target, &size_bytes))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = copy_content(source, NULL, target, size_bytes, ORDER_NOTHING, &cloned);
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyBool_FromLong(cloned);
}

/* A lease is taken and given back at once: a thread of this process that opens the file in between
 * would wait for whoever takes it back, which needs the interpreter's lock if that is Python. */
static PyObject *call_is_being_written(PyObject *module, PyObject *number)
{
    int fd = PyObject_AsFileDescriptor(number), failed;
    if (fd < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = fcntl(fd, F_SETLEASE, F_RDLCK);
    if (!failed)
        failed = fcntl(fd, F_SETLEASE, F_UNLCK);
    else if (errno == EAGAIN)
        failed = 1;
    Py_END_ALLOW_THREADS
    if (failed < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyBool_FromLong(failed);
}

PyMethodDef calls[] = {
    {"is_being_written", call_is_being_written, METH_O, NULL},
    {"rename", call_rename, METH_VARARGS, NULL},
    {"set_times", call_set_times, METH_VARARGS, NULL},
    {"set_times_of", call_set_times_of, METH_VARARGS, NULL},
    {"copy_data", call_copy_data, METH_VARARGS, NULL},
    {NULL},
};
