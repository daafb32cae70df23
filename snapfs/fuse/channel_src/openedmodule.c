/* The face to Python of what is open past us: `snapfs.fuse._channel.Opened`. */
#include "module.h"

#include <errno.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    struct opened_table *table;
} Opened;

struct opened_table *opened_table_of(PyObject *opened)
{
    return ((Opened *)opened)->table;
}

static PyObject *new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *words[] = {"journal_fd", "idle_kept", NULL};
    int journal_fd;
    Py_ssize_t idle_kept;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "in", words, &journal_fd, &idle_kept))
        return NULL;
    struct opened_table *table = opened_begin(journal_fd, (size_t)idle_kept);
    if (!table)
        return raise_errno(errno);
    Opened *self = (Opened *)type->tp_alloc(type, 0);
    if (self)
        self->table = table;
    else
        opened_end(table);
    return (PyObject *)self;
}

static void dealloc(Opened *self)
{
    opened_end(self->table);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Find the entry of a number; NULL with KeyError. */
static struct opened *entry_of(const Opened *self, unsigned long long nodeid)
{
    struct opened *entry = opened_find(self->table, nodeid);
    if (!entry)
        PyErr_Format(PyExc_KeyError, "%llu", nodeid);
    return entry;
}

static struct opened *entry_of_number(const Opened *self, PyObject *number)
{
    unsigned long long nodeid = PyLong_AsUnsignedLongLong(number);
    return PyErr_Occurred() ? NULL : entry_of(self, nodeid);
}

static PyObject *described(const struct opened *entry)
{
    const struct opened_record *record = entry->record;
    return Py_BuildValue("(KIiKKIIN)", (unsigned long long)record->nodeid,
                         (unsigned int)record->kind, (int)record->backing_id,
                         (unsigned long long)record->device, (unsigned long long)record->ino,
                         (unsigned int)opened_opens(entry), (unsigned int)opened_writers(entry),
                         PyBool_FromLong(entry->is_inherited));
}

static PyObject *find(Opened *self, PyObject *number)
{
    unsigned long long nodeid = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    const struct opened *entry = opened_find(self->table, nodeid);
    if (!entry)
        Py_RETURN_NONE;
    return described(entry);
}

static PyObject *add(Opened *self, PyObject *arguments)
{
    unsigned long long nodeid, device, ino;
    unsigned int kind;
    int backing_id;
    if (!PyArg_ParseTuple(arguments, "KIiKK", &nodeid, &kind, &backing_id, &device, &ino))
        return NULL;
    if (opened_find(self->table, nodeid) || kind == OPENED_NOT || kind > OPENED_CACHED)
        return raise_errno(EINVAL);
    struct opened_record record = {.nodeid = nodeid,
                                   .ino = ino,
                                   .device = device,
                                   .kind = kind,
                                   .backing_id = backing_id};
    if (!opened_add(self->table, &record))
        return raise_errno(errno);
    Py_RETURN_NONE;
}

static PyObject *enter(Opened *self, PyObject *arguments)
{
    unsigned long long nodeid, unique;
    int writing;
    unsigned int pid;
    if (!PyArg_ParseTuple(arguments, "KpIK", &nodeid, &writing, &pid, &unique))
        return NULL;
    struct opened *entry = entry_of(self, nodeid);
    if (!entry)
        return NULL;
    return PyBool_FromLong(opened_enter(self->table, entry, writing, pid, unique));
}

static PyObject *leave(Opened *self, PyObject *arguments)
{
    unsigned long long nodeid, unique;
    int writing;
    if (!PyArg_ParseTuple(arguments, "KpK", &nodeid, &writing, &unique))
        return NULL;
    struct opened *entry = entry_of(self, nodeid);
    if (!entry)
        return NULL;
    return PyBool_FromLong(opened_leave(self->table, entry, writing, unique));
}

static PyObject *keep(Opened *self, PyObject *number)
{
    struct opened *entry = entry_of_number(self, number);
    if (!entry)
        return NULL;
    const struct opened *going = opened_keep(self->table, entry);
    if (!going)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(going->record->nodeid);
}

static PyObject *remove_(Opened *self, PyObject *number)
{
    struct opened *entry = entry_of_number(self, number);
    if (!entry)
        return NULL;
    int backing_id = entry->record->backing_id;
    opened_remove(self->table, entry);
    return PyLong_FromLong(backing_id);
}

static PyObject *offer(Opened *self, PyObject *number)
{
    struct opened *entry = entry_of_number(self, number);
    if (!entry)
        return NULL;
    entry->may_read = entry->is_kept = entry->record->kind != OPENED_CACHED;
    Py_RETURN_NONE;
}

static PyObject *withdraw(Opened *self, PyObject *number)
{
    unsigned long long nodeid = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    struct opened *entry = opened_find(self->table, nodeid);
    if (entry)
        entry->may_read = entry->is_kept = false;
    Py_RETURN_NONE;
}

static PyObject *writers_of(Opened *self, PyObject *number)
{
    unsigned long long nodeid = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    const struct opened *entry = opened_find(self->table, nodeid);
    if (entry && (entry->pid_count > OPENED_PIDS ||
                  (entry->is_inherited && opened_writers(entry))))
        Py_RETURN_NONE;
    PyObject *pids = PyList_New(0);
    for (int i = 0; entry && pids && i < entry->pid_count; i++) {
        PyObject *pid = PyLong_FromUnsignedLong(entry->pids[i]);
        if (!pid || PyList_Append(pids, pid) < 0)
            Py_CLEAR(pids);
        Py_XDECREF(pid);
    }
    return pids;
}

static PyObject *all(Opened *self, PyObject *arguments)
{
    unsigned long long bits, value;
    int written;
    if (!PyArg_ParseTuple(arguments, "KKp", &bits, &value, &written))
        return NULL;
    PyObject *list = PyList_New(0);
    for (struct opened *it = NULL; list && (it = opened_each(self->table, it));) {
        if ((it->record->nodeid & bits) != value || (written && !opened_writers(it)))
            continue;
        PyObject *entry = described(it);
        if (!entry || PyList_Append(list, entry) < 0)
            Py_CLEAR(list);
        Py_XDECREF(entry);
    }
    return list;
}

static PyObject *tell(Opened *self, PyObject *arguments)
{
    unsigned long long nodeid, word;
    if (!PyArg_ParseTuple(arguments, "KK", &nodeid, &word))
        return NULL;
    struct opened *entry = opened_find(self->table, nodeid);
    if (entry)
        entry->record->told = word;
    Py_RETURN_NONE;
}

static PyObject *told(Opened *self, PyObject *unused)
{
    (void)unused;
    PyObject *list = PyList_New(0);
    for (struct opened *it = NULL; list && (it = opened_each(self->table, it));) {
        if (!it->record->told)
            continue;
        PyObject *note = Py_BuildValue("(KK)", (unsigned long long)it->record->nodeid,
                                       (unsigned long long)it->record->told);
        if (!note || PyList_Append(list, note) < 0)
            Py_CLEAR(list);
        Py_XDECREF(note);
    }
    return list;
}

static PyObject *is_counted(Opened *self, PyObject *number)
{
    unsigned long long unique = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(opened_is_counted(self->table, unique));
}

static Py_ssize_t length(PyObject *self)
{
    return (Py_ssize_t)opened_count(((Opened *)self)->table);
}

static PyObject *get_total(Opened *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(opened_total(self->table));
}

static PyObject *get_damaged(Opened *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(opened_damaged(self->table));
}

static PyMethodDef methods[] = {
    {"find", (PyCFunction)find, METH_O, NULL},
    {"add", (PyCFunction)add, METH_VARARGS, NULL},
    {"enter", (PyCFunction)enter, METH_VARARGS, NULL},
    {"leave", (PyCFunction)leave, METH_VARARGS, NULL},
    {"keep", (PyCFunction)keep, METH_O, NULL},
    {"remove", (PyCFunction)remove_, METH_O, NULL},
    {"offer", (PyCFunction)offer, METH_O, NULL},
    {"withdraw", (PyCFunction)withdraw, METH_O, NULL},
    {"writers_of", (PyCFunction)writers_of, METH_O, NULL},
    {"all", (PyCFunction)all, METH_VARARGS, NULL},
    {"tell", (PyCFunction)tell, METH_VARARGS, NULL},
    {"told", (PyCFunction)told, METH_NOARGS, NULL},
    {"is_counted", (PyCFunction)is_counted, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"total", (getter)get_total, NULL, NULL, NULL},
    {"damaged", (getter)get_damaged, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PySequenceMethods as_sequence = {.sq_length = length};

PyTypeObject opened_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "snapfs.fuse._channel.Opened",
    .tp_doc = "What is open past us, counted in a journal for the next process.",
    .tp_basicsize = sizeof(Opened),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = new,
    .tp_dealloc = (destructor)dealloc,
    .tp_methods = methods,
    .tp_getset = attributes,
    .tp_as_sequence = &as_sequence,
};
