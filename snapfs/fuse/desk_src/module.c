/* The face to Python: `snapfs.fuse._desk`. Types and meaning are in _desk.pyi. */
#include "../../overlay/copies_src/copies.h"
#include "desk.h"

#include "../channel_src/hot.h"
#include "kept.h"

#include <errno.h>
#include <math.h>
#include <structmember.h>

const NamesApi *names;
extern const CopiesApi *copies;

static PyObject *desk_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *words[] = {"handed", "timeout_s", "caches_absence", "xattrs", "entry_of",
                            "main",   NULL};
    PyObject *handed, *entry_of;
    double timeout_s;
    int absence, xattrs;
    unsigned long long device, base;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!dppO(KK)", words,
                                     names->handed_type, &handed, &timeout_s, &absence, &xattrs,
                                     &entry_of, &device, &base))
        return NULL;
    Desk *self = (Desk *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->handed = (Handed *)Py_NewRef(handed);
    self->entry_of = Py_NewRef(entry_of);
    self->valid = (uint64_t)timeout_s;
    self->valid_nsec = (uint32_t)((timeout_s - floor(timeout_s)) * 1e9);
    self->absence = absence;
    self->xattrs = xattrs;
    self->main_device = device;
    self->main_base = base;
    self->keeps_in = -1;
    return (PyObject *)self;
}

static int desk_traverse(Desk *self, visitproc visit, void *arg)
{
    Py_VISIT(self->handed);
    Py_VISIT(self->entry_of);
    return 0;
}

static int desk_clear(Desk *self)
{
    Py_CLEAR(self->handed);
    Py_CLEAR(self->entry_of);
    return 0;
}

static void desk_dealloc(Desk *self)
{
    PyObject_GC_UnTrack(self);
    cards_clear(self);
    desk_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *failed(int result)
{
    if (result == FAILED_THERE)
        return NULL;
    errno = -result;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *lookup(Desk *self, PyObject *arguments)
{
    unsigned long long parent;
    const char *name;
    Py_ssize_t length;
    struct entry_out out;
    if (!PyArg_ParseTuple(arguments, "Ky#", &parent, &name, &length))
        return NULL;
    int result = desk_lookup(self, parent, name, (size_t)length, &out);
    if (result < 0)
        return failed(result);
    if (result == LEFT_TO_PYTHON)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)&out, sizeof(out));
}

static PyObject *list(Desk *self, PyObject *arguments)
{
    unsigned long long ino, after;
    Py_ssize_t size;
    unsigned int pid;
    int plus;
    size_t used;
    if (!PyArg_ParseTuple(arguments, "KKnpI", &ino, &after, &size, &plus, &pid))
        return NULL;
    const Wish wish = {ino, after, pid, plus};
    if (size < 0 || (size_t)size > BUFFER_BYTES)
        size = BUFFER_BYTES;
    PyObject *page = PyBytes_FromStringAndSize(NULL, size);
    if (!page)
        return NULL;
    char *buffer = PyBytes_AS_STRING(page);
    int result = desk_list(self, &wish, 1, buffer, (size_t)size, &used);
    if (result == DONE_HERE) {
        _PyBytes_Resize(&page, (Py_ssize_t)used);
        return page;
    }
    Py_DECREF(page);
    if (result < 0)
        return failed(result);
    Py_RETURN_NONE;
}

static PyObject *numbers(const struct known *known)
{
    PyObject *list = PyList_New((Py_ssize_t)known->count);
    for (size_t i = 0; list && i < known->count; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(known->inos[i]);
        if (!number)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, number);
    }
    return list;
}

static PyObject *list_known(Desk *self, PyObject *arguments)
{
    unsigned long long ino, above, after;
    PyObject *directory, *index;
    Py_ssize_t size;
    size_t used;
    if (!PyArg_ParseTuple(arguments, "OO!KKKn", &directory, names->index_type, &index, &ino, &above,
                          &after, &size))
        return NULL;
    if (size < 0 || (size_t)size > BUFFER_BYTES)
        size = BUFFER_BYTES;
    PyObject *page = PyBytes_FromStringAndSize(NULL, size);
    if (!page)
        return NULL;
    const Listing listing = {(const Index *)index, ino, above, after};
    struct known known = {.count = 0};
    int result = desk_list_known(self, directory, &listing, &known, PyBytes_AS_STRING(page),
                                 (size_t)size, &used);
    if (result < 0) {
        Py_DECREF(page);
        return failed(result);
    }
    _PyBytes_Resize(&page, (Py_ssize_t)used);
    PyObject *counted = page ? numbers(&known) : NULL;
    if (!counted) {
        Py_XDECREF(page);
        return NULL;
    }
    return Py_BuildValue("(NN)", page, counted);
}

static PyObject *note(Desk *self, PyObject *arguments)
{
    unsigned long long ino, parent;
    const char *path;
    unsigned int type;
    Card card = {0};
    if (!PyArg_ParseTuple(arguments, "KiyIpK|iy", &ino, &card.fd, &path, &type, &card.is_upper,
                          &parent, &card.data_fd, &card.data))
        return NULL;
    card.ino = ino;
    card.parent = parent;
    card.type = type;
    if (!card_put(self, &card, path))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *note_directory(Desk *self, PyObject *arguments)
{
    unsigned long long ino;
    const char *path;
    PyObject *index;
    Card card = {.is_upper = 1, .type = S_IFDIR};
    if (!PyArg_ParseTuple(arguments, "KiyO", &ino, &card.fd, &path, &index))
        return NULL;
    if (index != Py_None && !PyObject_TypeCheck(index, names->index_type)) {
        PyErr_SetString(PyExc_TypeError, "an Index or None");
        return NULL;
    }
    card.ino = ino;
    card.index = index == Py_None ? NULL : (Index *)index;
    if (!card_put(self, &card, path))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *strike(Desk *self, PyObject *number)
{
    unsigned long long ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    card_drop(self, ino);
    kept_drop(ino);
    Py_RETURN_NONE;
}

static PyObject *strike_all(Desk *self, PyObject *unused)
{
    cards_clear(self);
    Py_RETURN_NONE;
}

static PyObject *begin(Desk *self, PyObject *unused)
{
    if (!desks_add(self))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *end(Desk *self, PyObject *unused)
{
    if (!desks_remove(self))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef desk_methods[] = {
    {"lookup", (PyCFunction)lookup, METH_VARARGS, NULL},
    {"list", (PyCFunction)list, METH_VARARGS, NULL},
    {"list_known", (PyCFunction)list_known, METH_VARARGS, NULL},
    {"note", (PyCFunction)note, METH_VARARGS, NULL},
    {"note_directory", (PyCFunction)note_directory, METH_VARARGS, NULL},
    {"strike", (PyCFunction)strike, METH_O, NULL},
    {"strike_all", (PyCFunction)strike_all, METH_NOARGS, NULL},
    {"begin", (PyCFunction)begin, METH_NOARGS, NULL},
    {"end", (PyCFunction)end, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef desk_members[] = {
    {"passes_upper", T_BOOL, offsetof(Desk, passes_upper), 0, NULL},
    {"takes_writers", T_BOOL, offsetof(Desk, takes_writers), 0, NULL},
    {"refuses_labels", T_BOOL, offsetof(Desk, refuses_labels), 0, NULL},
    {"awaits_space", T_BOOL, offsetof(Desk, awaits_space), 0, NULL},
    {"takes_names", T_BOOL, offsetof(Desk, takes_names), 0, NULL},
    {"order", T_INT, offsetof(Desk, order), 0, NULL},
    {"leaves_data", T_BOOL, offsetof(Desk, leaves_data), 0, NULL},
    {"leaves_first", T_BOOL, offsetof(Desk, leaves_first), 0, NULL},
    {"leaves_forgets", T_BOOL, offsetof(Desk, leaves_forgets), 0, NULL},
    {"keeps_in", T_INT, offsetof(Desk, keeps_in), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject desk_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "snapfs.fuse._desk.Desk",
    .tp_doc = "Answers for one tree what needs no rules.",
    .tp_basicsize = sizeof(Desk),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = desk_new,
    .tp_dealloc = (destructor)desk_dealloc,
    .tp_traverse = (traverseproc)desk_traverse,
    .tp_clear = (inquiry)desk_clear,
    .tp_methods = desk_methods,
    .tp_members = desk_members,
};

static PyObject *descriptors(PyObject *module, PyObject *unused)
{
    return PyLong_FromSize_t(kept_count());
}

static PyMethodDef functions[] = {
    {"descriptors", descriptors, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "snapfs.fuse._desk", .m_size = -1, .m_methods = functions};

/* Join the fast lane, if the channel's library is in use; 0 with an exception set. */
static int join(void)
{
    PyObject *name = PyUnicode_FromString("snapfs.fuse._channel");
    PyObject *channel = name ? PyImport_GetModule(name) : NULL;
    Py_XDECREF(name);
    if (!channel)
        return !PyErr_Occurred();
    PyObject *capsule = PyObject_GetAttrString(channel, "hot_api");
    Py_DECREF(channel);
    const struct hot_api *api = capsule ? PyCapsule_GetPointer(capsule, HOT_CAPSULE) : NULL;
    Py_XDECREF(capsule);
    if (!api)
        return 0;
    if (!desks_begin(api))
        PyErr_SetString(PyExc_RuntimeError, "the fast lane takes no more handlers");
    return !PyErr_Occurred();
}

/* What a module of the overlay offers, or NULL. */
static const void *api_of(const char *module, const char *capsule_name)
{
    PyObject *overlay = PyImport_ImportModule(module);
    PyObject *capsule = overlay ? PyObject_GetAttrString(overlay, "api") : NULL;
    Py_XDECREF(overlay);
    const void *api = capsule ? PyCapsule_GetPointer(capsule, capsule_name) : NULL;
    Py_XDECREF(capsule);
    return api;
}

PyMODINIT_FUNC PyInit__desk(void)
{
    names = api_of("snapfs.overlay._names", NAMES_CAPSULE);
    copies = names ? api_of("snapfs.overlay._copies", COPIES_CAPSULE) : NULL;
    if (!copies || !join())
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddType(module, &desk_type)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
