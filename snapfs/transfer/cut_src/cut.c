/* Where content-defined chunks end: a gear hash over the bytes, with a stricter mask before the
 * wanted size and a looser one after it, so that sizes gather around it (Xia et al., FastCDC,
 * USENIX ATC 2016). */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

typedef struct {
    size_t least, wanted, most;
    uint64_t strict, loose;
    uint64_t gear[256];
} Rule;

/* Length of the first chunk of `size` bytes; `size` when nothing in them ends one. */
static size_t first(const Rule *rule, const uint8_t *data, size_t size)
{
    if (size > rule->most)
        size = rule->most;
    if (size <= rule->least)
        return size;
    size_t middle = size < rule->wanted ? size : rule->wanted;
    uint64_t hash = 0;
    size_t at = rule->least;
    for (; at < middle; at++) {
        hash = (hash << 1) + rule->gear[data[at]];
        if (!(hash & rule->strict))
            return at + 1;
    }
    for (; at < size; at++) {
        hash = (hash << 1) + rule->gear[data[at]];
        if (!(hash & rule->loose))
            return at + 1;
    }
    return size;
}

/* The lengths of chunks one after the other; without `final` only those that more data, put behind
 * these, could not change. NULL: an error is set. */
static PyObject *lengths(const Rule *rule, const uint8_t *data, size_t size, int final)
{
    PyObject *found = PyList_New(0);
    size_t at = 0;
    while (found && at < size && (final || size - at >= rule->most)) {
        size_t length;
        Py_BEGIN_ALLOW_THREADS
        length = first(rule, data + at, size - at);
        Py_END_ALLOW_THREADS
        PyObject *number = PyLong_FromSize_t(length);
        if (!number || PyList_Append(found, number))
            Py_CLEAR(found);
        Py_XDECREF(number);
        at += length;
    }
    return found;
}

static PyObject *cut(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer data, gear;
    Py_ssize_t least, wanted, most;
    unsigned long long strict, loose;
    int final;
    if (!PyArg_ParseTuple(args, "y*y*nnnKKp", &data, &gear, &least, &wanted, &most, &strict, &loose,
                          &final))
        return NULL;
    PyObject *found = NULL;
    Rule rule = {(size_t)least, (size_t)wanted, (size_t)most, strict, loose, {0}};
    if (gear.len != (Py_ssize_t)sizeof rule.gear)
        PyErr_SetString(PyExc_ValueError, "the gear table has 256 numbers of 64 bits");
    else if (least < 1 || wanted < least || most < wanted)
        PyErr_SetString(PyExc_ValueError, "sizes are in order: least, wanted, most");
    else {
        memcpy(rule.gear, gear.buf, sizeof rule.gear);
        found = lengths(&rule, data.buf, (size_t)data.len, final);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&gear);
    return found;
}

static PyMethodDef methods[] = {
    {"cut", cut, METH_VARARGS, "The lengths of the chunks at the beginning of a buffer."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_cut",
    .m_doc = "Where content-defined chunks end.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__cut(void)
{
    return PyModule_Create(&definition);
}
