/* Source: a regular file of a lower layer, held open for its copy-up. The file never changes. */
#include "attributes.h"
#include "copies.h"

#include <unistd.h>

typedef struct {
    PyObject_HEAD
    Lower file;
} Source;

static PyObject *source_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    int at;
    PyObject *path;
    if (!PyArg_ParseTuple(arguments, "iS:Source", &at, &path))
        return NULL;
    Source *self = (Source *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = lower_open(&self->file, at, PyBytes_AS_STRING(path));
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
    lower_close(&self->file);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *source_close(Source *self, PyObject *nothing)
{
    lower_close(&self->file);
    Py_RETURN_NONE;
}

static PyObject *source_fetch(Source *self, PyObject *nothing)
{
    bool is_here;
    Py_BEGIN_ALLOW_THREADS
    is_here = lower_fetch(&self->file);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(is_here);
}

static PyObject *source_copy(Source *self, PyObject *arguments)
{
    Wanted wanted = {0};
    Source *data;
    long long size_bytes;
    PyObject *name;
    int keeps_mtime, order;
    if (!PyArg_ParseTuple(arguments, "O!iSLipyy:copy", &SourceType, &data, &wanted.work, &name,
                          &size_bytes, &order, &keeps_mtime, &wanted.ino, &wanted.protattr))
        return NULL;
    wanted.name = PyBytes_AS_STRING(name);
    wanted.size_bytes = size_bytes;
    wanted.order = (enum order)order;
    wanted.keeps_mtime = keeps_mtime;
    bool cloned = false;
    int target;
    Py_BEGIN_ALLOW_THREADS
    target = lower_copy(&self->file, &data->file, &wanted, &cloned);
    if (target >= 0)
        close(target);
    Py_END_ALLOW_THREADS
    if (target < 0)
        return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, name);
    return PyBool_FromLong(cloned);
}

static PyObject *source_copy_metadata(Source *self, PyObject *arguments)
{
    Wanted wanted = {.keeps_mtime = true, .is_metacopy = true, .protattr = ""};
    PyObject *name;
    if (!PyArg_ParseTuple(arguments, "iSy:copy_metadata", &wanted.work, &name, &wanted.ino))
        return NULL;
    wanted.name = PyBytes_AS_STRING(name);
    bool cloned;
    int target;
    Py_BEGIN_ALLOW_THREADS
    target = lower_copy(&self->file, &self->file, &wanted, &cloned);
    if (target >= 0)
        close(target);
    Py_END_ALLOW_THREADS
    if (target < 0)
        return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, name);
    Py_RETURN_NONE;
}

static PyObject *source_size(Source *self, void *nothing)
{
    return PyLong_FromUnsignedLongLong(self->file.real.stx_size);
}

static PyObject *source_allocated(Source *self, void *nothing)
{
    return PyLong_FromUnsignedLongLong(self->file.real.stx_blocks * 512);
}

static PyObject *source_nlink(Source *self, void *nothing)
{
    return PyLong_FromUnsignedLong(self->file.real.stx_nlink);
}

static PyObject *source_attributes(Source *self, void *nothing)
{
    return PyLong_FromUnsignedLongLong(self->file.real.stx_attributes);
}

static PyObject *source_is_metacopy(Source *self, void *nothing)
{
    return PyBool_FromLong(has_name(self->file.names, self->file.names_bytes, METACOPY));
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
    {"copy_metadata", (PyCFunction)source_copy_metadata, METH_VARARGS, NULL},
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
