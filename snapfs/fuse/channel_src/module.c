/* The face to Python: `snapfs.fuse._channel`. Types and meaning are in _channel.pyi. */
#include <errno.h>

#include "hot.h"
#include "module.h"

#define ABI 23 /* channel.py asks for the same */
#define BIG_REPLY_BYTES 65536 /* copied by the kernel while other threads may run */

PyObject *raise_errno(int error)
{
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *receive(PyObject *module, PyObject *argument)
{
    (void)module;
    int fd = PyObject_AsFileDescriptor(argument);
    if (fd < 0)
        return NULL;
    enum received found = channel_receive(fd);
    int error = errno;
    if (hot_tell() < 0)
        return NULL;
    switch (found) {
    case NOTHING:
        Py_RETURN_NONE;
    case FOR_LIBFUSE:
        Py_RETURN_TRUE;
    case FOR_US: {
        const struct in_header *header = channel_request();
        size_t extensions = (size_t)header->total_extlen * 8;
        size_t size = header->len - sizeof(*header);
        if (extensions > size) {
            channel_reply(fd, header->unique, EIO, NULL, 0);
            Py_RETURN_FALSE;
        }
        return Py_BuildValue("(KiKIIIy#)", (unsigned long long)header->unique, (int)header->opcode,
                             (unsigned long long)header->nodeid, header->uid, header->gid,
                             header->pid, (const char *)(header + 1),
                             (Py_ssize_t)(size - extensions));
    }
    case DONE:
        Py_RETURN_FALSE;
    case FAILED:
        break;
    }
    return raise_errno(error);
}

static PyObject *reply(PyObject *module, PyObject *arguments)
{
    (void)module;
    int fd, error, result;
    unsigned long long unique;
    Py_buffer body;
    if (!PyArg_ParseTuple(arguments, "iKiy*", &fd, &unique, &error, &body))
        return NULL;
    if (body.len < BIG_REPLY_BYTES) {
        result = channel_reply(fd, unique, error, body.buf, (size_t)body.len);
    } else {
        Py_BEGIN_ALLOW_THREADS
        result = channel_reply(fd, unique, error, body.buf, (size_t)body.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&body);
    if (result)
        return raise_errno(result);
    Py_RETURN_NONE;
}

static PyObject *route(PyObject *module, PyObject *argument)
{
    (void)module;
    unsigned long long opcodes = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    channel_route(opcodes);
    Py_RETURN_NONE;
}

static PyObject *answer_open(PyObject *module, PyObject *arguments)
{
    (void)module;
    unsigned long long fh;
    unsigned int open_flags;
    int backing_id;
    if (!PyArg_ParseTuple(arguments, "KIi", &fh, &open_flags, &backing_id))
        return NULL;
    struct answer answer = {fh, open_flags, backing_id};
    if (!opens_put(&answer))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *take_answer(PyObject *module, PyObject *argument)
{
    (void)module;
    struct answer answer;
    unsigned long long fh = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (!opens_take(fh, &answer))
        Py_RETURN_NONE;
    return Py_BuildValue("(Ii)", answer.open_flags, answer.backing_id);
}

static PyObject *missing(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    const char *name = libfuse_find();
    if (!name)
        Py_RETURN_NONE;
    return PyUnicode_FromString(name);
}

static PyObject *waiting(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    const struct in_header *request = channel_waiting();
    if (!request)
        return Py_BuildValue("(KiO)", 0ULL, -1, Py_False);
    return Py_BuildValue("(KLO)", (unsigned long long)request->unique,
                         channel_kills_set_id(request) ? (long long)request->pid : -1LL,
                         channel_gives_times(request) ? Py_True : Py_False);
}

static PyObject *is_ours(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyBool_FromLong(libfuse_is_ours());
}

static PyMethodDef methods[] = {
    {"receive", receive, METH_O, NULL},
    {"reply", reply, METH_VARARGS, NULL},
    {"route", route, METH_O, NULL},
    {"answer_open", answer_open, METH_VARARGS, NULL},
    {"take_answer", take_answer, METH_O, NULL},
    {"waiting", waiting, METH_NOARGS, NULL},
    {"missing", missing, METH_NOARGS, NULL},
    {"is_ours", is_ours, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "snapfs.fuse._channel", .m_size = -1, .m_methods = methods};

/* Let other libraries answer hot requests too. */
static int add_api(PyObject *module)
{
    PyObject *capsule = PyCapsule_New((void *)&hot_api, HOT_CAPSULE, NULL);
    int result = capsule ? PyModule_AddObjectRef(module, "hot_api", capsule) : -1;
    Py_XDECREF(capsule);
    return result;
}

PyMODINIT_FUNC PyInit__channel(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module && (PyModule_AddIntConstant(module, "ABI", ABI) < 0 || add_api(module) < 0 ||
                   PyModule_AddType(module, &opened_type) < 0 ||
                   PyModule_AddFunctions(module, hot_methods) < 0)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
