/* The face to Python of the fast lane. */
#include "module.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "hot.h"

static PyObject *figures(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    const struct hot_count *counts = hot_counts();
    PyObject *by_opcode = PyDict_New();
    for (int opcode = 0; by_opcode && opcode < OPCODES; opcode++) {
        if (!counts[opcode].answered && !counts[opcode].left)
            continue;
        PyObject *key = PyLong_FromLong(opcode);
        PyObject *value = Py_BuildValue("(KK)", (unsigned long long)counts[opcode].answered,
                                        (unsigned long long)counts[opcode].left);
        if (!key || !value || PyDict_SetItem(by_opcode, key, value) < 0)
            Py_CLEAR(by_opcode);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return by_opcode;
}

static PyObject *ended(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromUnsignedLongLong(events_ended());
}

static PyObject *passing; /* the Opened whose table passes.c uses; NULL when it uses none */
static PyObject *listener; /* called when events.c has something to tell */
static Py_buffer record;   /* that passes.c notes the request in hand in */

#define RECORD_BYTES 32 /* inflight.py */

int hot_tell(void)
{
    if (!listener || !events_any())
        return 0;
    PyObject *result = PyObject_CallNoArgs(listener);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static void forget_record(void)
{
    passes_note_in(NULL);
    if (record.buf)
        PyBuffer_Release(&record);
    record.buf = NULL;
}

static PyObject *start(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *table, *wanted, *noted;
    int without_opens;
    if (!PyArg_ParseTuple(arguments, "OOOp", &table, &wanted, &noted, &without_opens))
        return NULL;
    if (table != Py_None && !PyObject_TypeCheck(table, &opened_type))
        return raise_errno(EINVAL);
    forget_record();
    if (noted != Py_None && PyObject_GetBuffer(noted, &record, PyBUF_WRITABLE))
        return NULL;
    if (record.buf && record.len != RECORD_BYTES) {
        forget_record();
        return raise_errno(EINVAL);
    }
    if (!answers_register() || !passes_register())
        return PyErr_NoMemory();
    passes_use(table == Py_None ? NULL : opened_table_of(table));
    passes_go_without_opens(without_opens);
    passes_note_in(record.buf);
    Py_XSETREF(passing, table == Py_None ? NULL : Py_NewRef(table));
    Py_XSETREF(listener, Py_NewRef(wanted));
    hot_enable(true);
    Py_RETURN_NONE;
}

static PyObject *stop(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    hot_enable(false);
    Py_BEGIN_ALLOW_THREADS
    passes_stop();
    Py_END_ALLOW_THREADS
    passes_go_without_opens(false);
    passes_use(NULL);
    forget_record();
    Py_CLEAR(passing);
    Py_CLEAR(listener);
    Py_RETURN_NONE;
}

static PyObject *allow_passing(PyObject *module, PyObject *on)
{
    (void)module;
    int wanted = PyObject_IsTrue(on);
    if (wanted < 0)
        return NULL;
    passes_allow(wanted && passes_table());
    Py_RETURN_NONE;
}

static PyObject *events(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    struct hot_event taken[64];
    size_t count = events_take(taken, sizeof(taken) / sizeof(taken[0]));
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        const struct hot_event *it = &taken[i];
        PyObject *event = Py_BuildValue(
            "(KiKKKKKIy#)", (unsigned long long)it->nodeid, (int)it->kind,
            (unsigned long long)it->ino, (unsigned long long)it->blocks,
            (unsigned long long)it->nlink, (unsigned long long)it->other,
            (unsigned long long)it->forgotten, (unsigned)it->mode,
            it->name ? it->name : "", (Py_ssize_t)it->length);
        if (!event)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, event);
    }
    return list;
}

static PyObject *idle_(PyObject *module, PyObject *arguments)
{
    (void)module;
    int fd, other_fd, timeout_ms;
    bool is_waiting;
    if (!PyArg_ParseTuple(arguments, "iii", &fd, &other_fd, &timeout_ms))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    is_waiting = idle(fd, other_fd, timeout_ms);
    Py_END_ALLOW_THREADS
    if (PyErr_CheckSignals() < 0 || hot_tell() < 0)
        return NULL;
    return PyBool_FromLong(is_waiting);
}

static PyObject *keep_awake(PyObject *module, PyObject *number)
{
    (void)module;
    long fd = PyLong_AsLong(number);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    awake_by((int)fd);
    Py_RETURN_NONE;
}

static PyObject *summed(PyObject *module, PyObject *arguments)
{
    (void)module;
    unsigned long long unique, first, second, state;
    if (!PyArg_ParseTuple(arguments, "KKKK", &unique, &first, &second, &state))
        return NULL;
    return PyLong_FromUnsignedLongLong(passes_summed(unique, first, second, state));
}

PyMethodDef hot_methods[] = {
    {"summed", summed, METH_VARARGS, NULL},
    {"hot_figures", figures, METH_NOARGS, NULL},
    {"hot_ended", ended, METH_NOARGS, NULL},
    {"hot_start", start, METH_VARARGS, NULL},
    {"hot_allow_passing", allow_passing, METH_O, NULL},
    {"hot_events", events, METH_NOARGS, NULL},
    {"hot_stop", stop, METH_NOARGS, NULL},
    {"idle", idle_, METH_VARARGS, NULL},
    {"keep_awake", keep_awake, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
