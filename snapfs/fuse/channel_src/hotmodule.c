/* The face to Python of the fast lane. */
#include "module.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "hot.h"

/* Find or make a node and note that `offers` is offered of it; called with the lock held. */
static struct hot_node *offer(uint64_t nodeid, uint32_t offers)
{
    struct hot_node *node = nodes_get(nodeid);
    if (node)
        node->offers |= offers;
    return node;
}

static PyObject *done(const struct hot_node *node)
{
    if (!node)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *offer_open(PyObject *module, PyObject *arguments)
{
    (void)module;
    unsigned long long nodeid;
    unsigned int open_flags;
    int backing_id;
    if (!PyArg_ParseTuple(arguments, "KIi", &nodeid, &open_flags, &backing_id))
        return NULL;
    hot_lock();
    struct hot_node *node = offer(nodeid, OFFER_OPEN);
    if (node) {
        node->open_flags = open_flags;
        node->backing_id = backing_id;
    }
    hot_unlock();
    return done(node);
}

static PyObject *offer_attributes(PyObject *module, PyObject *arguments)
{
    (void)module;
    unsigned long long nodeid, valid_s;
    Py_buffer packed;
    if (!PyArg_ParseTuple(arguments, "KKy*", &nodeid, &valid_s, &packed))
        return NULL;
    struct hot_node *node = NULL;
    bool fits = packed.len == sizeof(node->attr);
    if (fits) {
        hot_lock();
        node = offer(nodeid, OFFER_ATTR);
        if (node) {
            node->attr_valid_s = valid_s;
            memcpy(&node->attr, packed.buf, sizeof(node->attr));
        }
        hot_unlock();
    }
    PyBuffer_Release(&packed);
    return fits ? done(node) : raise_errno(EINVAL);
}

static PyObject *offer_no_xattrs(PyObject *module, PyObject *arguments)
{
    (void)module;
    unsigned long long nodeid;
    unsigned int which;
    if (!PyArg_ParseTuple(arguments, "KI", &nodeid, &which))
        return NULL;
    hot_lock();
    struct hot_node *node =
        offer(nodeid, which & (OFFER_NO_SECURITY_XATTRS | OFFER_NO_USER_XATTRS));
    hot_unlock();
    return done(node);
}

static PyObject *offer_contents(PyObject *module, PyObject *arguments)
{
    (void)module;
    unsigned long long nodeid;
    int fd;
    if (!PyArg_ParseTuple(arguments, "Ki", &nodeid, &fd))
        return NULL;
    hot_lock();
    struct hot_node *node = offer(nodeid, OFFER_FD);
    if (node) {
        if (node->fd >= 0)
            close(node->fd);
        node->fd = fd;
    }
    hot_unlock();
    return done(node);
}

static PyObject *withdraw(PyObject *module, PyObject *arguments)
{
    (void)module;
    unsigned long long nodeid;
    unsigned int offers;
    int tell;
    uint32_t opens = 0;
    if (!PyArg_ParseTuple(arguments, "KIp", &nodeid, &offers, &tell))
        return NULL;
    hot_lock();
    struct hot_node *node = nodes_find(nodeid);
    if (node) {
        if (tell && node->opens)
            node->tell = true;
        opens = nodes_withdraw(node, offers);
    }
    hot_unlock();
    return PyLong_FromUnsignedLong(opens);
}

static PyObject *withdraw_all(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    hot_lock();
    nodes_withdraw_all();
    hot_unlock();
    Py_RETURN_NONE;
}

static PyObject *closed(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    uint64_t taken[64];
    hot_lock();
    size_t count = nodes_take_closed(taken, sizeof(taken) / sizeof(taken[0]));
    hot_unlock();
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(taken[i]);
        if (!number)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, number);
    }
    return list;
}

static PyObject *opens_of(PyObject *module, PyObject *argument)
{
    (void)module;
    unsigned long long nodeid = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    hot_lock();
    const struct hot_node *node = nodes_find(nodeid);
    uint32_t opens = node ? node->opens : 0;
    hot_unlock();
    return PyLong_FromUnsignedLong(opens);
}

static PyObject *figures(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    uint64_t counts[OPCODES];
    hot_lock();
    memcpy(counts, hot_counts(), sizeof(counts));
    size_t nodes = nodes_count(), opens = nodes_opens();
    hot_unlock();
    PyObject *by_opcode = PyDict_New();
    for (int opcode = 0; by_opcode && opcode < OPCODES; opcode++) {
        if (!counts[opcode])
            continue;
        PyObject *key = PyLong_FromLong(opcode);
        PyObject *value = PyLong_FromUnsignedLongLong(counts[opcode]);
        if (!key || !value || PyDict_SetItem(by_opcode, key, value) < 0)
            Py_CLEAR(by_opcode);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return by_opcode ? Py_BuildValue("(nnN)", (Py_ssize_t)nodes, (Py_ssize_t)opens, by_opcode) : NULL;
}

static PyObject *start(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    if (!answers_register())
        return PyErr_NoMemory();
    hot_enable(true);
    return PyLong_FromUnsignedLongLong(answers_handle());
}

static PyObject *stop(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    hot_enable(false);
    Py_RETURN_NONE;
}

static PyObject *idle_(PyObject *module, PyObject *arguments)
{
    (void)module;
    int fd, other_fd, wake_fd, timeout_ms;
    if (!PyArg_ParseTuple(arguments, "iiii", &fd, &other_fd, &wake_fd, &timeout_ms))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    idle(fd, other_fd, wake_fd, timeout_ms);
    Py_END_ALLOW_THREADS
    if (PyErr_CheckSignals() < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyMethodDef hot_methods[] = {
    {"hot_offer_open", offer_open, METH_VARARGS, NULL},
    {"hot_offer_attributes", offer_attributes, METH_VARARGS, NULL},
    {"hot_offer_no_xattrs", offer_no_xattrs, METH_VARARGS, NULL},
    {"hot_offer_contents", offer_contents, METH_VARARGS, NULL},
    {"hot_withdraw", withdraw, METH_VARARGS, NULL},
    {"hot_withdraw_all", withdraw_all, METH_NOARGS, NULL},
    {"hot_closed", closed, METH_NOARGS, NULL},
    {"hot_opens", opens_of, METH_O, NULL},
    {"hot_figures", figures, METH_NOARGS, NULL},
    {"hot_start", start, METH_NOARGS, NULL},
    {"hot_stop", stop, METH_NOARGS, NULL},
    {"idle", idle_, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
