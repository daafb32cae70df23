/* Index: merged names of a stack of directories, never changed once built.
 *
 * Whiteouts are resolved as in ovl_lookup(): the topmost entry of a name is the visible one, and
 * directories below a directory take part until something else ends the stack. Entries lie in the
 * order of their keys, which is the order of listings and, but for the rare tie, that of hashes.
 */
#include "merge.h"

#include <stdlib.h>
#include <string.h>

#define DIRECTORY 4

uint32_t index_above(const Index *self, uint64_t after)
{
    uint32_t low = 0, high = self->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (self->entries[middle].key <= after)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int64_t index_find(const Index *self, const char *name, size_t length)
{
    uint64_t hash = name_hash(name, length, self->hash_bits);
    for (uint32_t slot = index_above(self, (hash << RANK_BITS) - 1); slot < self->count; slot++) {
        const Entry *entry = &self->entries[slot];
        const char *other = self->names + entry->name;
        if (entry->length == length && !memcmp(other, name, length))
            return slot;
        if (name_hash(other, entry->length, self->hash_bits) > hash)
            break;
    }
    return -1;
}

/* Low part of a number: the inode number itself on the main device, else what Python says. */
static int low_of(const Raw *raw, const Source *sources, uint64_t main, PyObject *low, uint64_t *out)
{
    uint64_t device = sources[raw->position].device;
    if (device == main && raw->ino > 1 && raw->ino < (uint64_t)1 << 39) {
        *out = raw->ino;
        return 0;
    }
    PyObject *number = PyObject_CallFunction(low, "KK", device, raw->ino);
    if (!number)
        return -1;
    *out = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    return PyErr_Occurred() ? -1 : 0;
}

/* Take over the directories that a visible directory is merged with. */
static int add_deeper(Index *self, const Raw *raw, const Raw *end, const Source *sources,
              uint64_t main, PyObject *low)
{
    for (; raw < end && raw->kind == DIRECTORY; raw++) {
        Deeper *bigger = realloc(self->deeper, (self->deeper_count + 1) * sizeof *bigger);
        if (!bigger) {
            PyErr_NoMemory();
            return -1;
        }
        self->deeper = bigger;
        Deeper *deeper = &bigger[self->deeper_count];
        deeper->slot = self->count;
        deeper->position = raw->position;
        if (low_of(raw, sources, main, low, &deeper->low))
            return -1;
        self->deeper_count++;
        self->entries[self->count].kind |= MORE;
    }
    return 0;
}

static int same_name(const Heap *heap, const Raw *a, const Raw *b)
{
    return a->hash == b->hash && a->length == b->length &&
           !memcmp(heap->names + a->name, heap->names + b->name, a->length);
}

/* Turn sorted raw entries into the index; `heap->names` becomes its own. */
static int take(Index *self, Heap *heap, const Source *sources, uint64_t main, PyObject *low)
{
    uint64_t key = LAST_DOT;
    self->entries = malloc((heap->count + 1) * sizeof *self->entries);
    if (!self->entries) {
        PyErr_NoMemory();
        return -1;
    }
    self->names = heap->names;
    const Raw *raw = heap->raws, *all = heap->raws + heap->count, *end;
    for (; raw < all; raw = end) {
        for (end = raw + 1; end < all && same_name(heap, raw, end); end++)
            ;
        if (!raw->kind)
            continue;
        Entry *entry = &self->entries[self->count];
        uint64_t wanted = raw->hash << RANK_BITS;
        entry->key = key = wanted > key ? wanted : key + 1;
        entry->name = raw->name;
        entry->length = raw->length;
        entry->position = raw->position;
        entry->kind = raw->kind;
        if (low_of(raw, sources, main, low, &entry->low))
            return -1;
        if (raw->kind == DIRECTORY && add_deeper(self, raw + 1, end, sources, main, low))
            return -1;
        self->count++;
    }
    Entry *entries = realloc(self->entries, (self->count + 1) * sizeof *entries);
    self->entries = entries ? entries : self->entries;
    char *names = realloc(self->names, heap->used + 1);
    self->names = names ? names : self->names;
    return 0;
}

static int build(Index *self, Source *sources, Py_ssize_t count, uint64_t main, PyObject *low)
{
    Heap heap = {.hash_bits = self->hash_bits};
    int error = 0;
    Py_ssize_t position = 0;
    Py_BEGIN_ALLOW_THREADS
    for (; !error && position < count; position++)
        error = heap_read(&heap, &sources[position], (uint16_t)position);
    if (!error)
        heap_sort(&heap);
    Py_END_ALLOW_THREADS
    if (error) {
        errno = error;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, sources[position - 1].path);
        heap_free(&heap);
        return -1;
    }
    int failed = take(self, &heap, sources, main, low);
    if (self->names)
        heap.names = NULL;
    heap_free(&heap);
    return failed;
}

static int read_sources(PyObject *places, Source *sources, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        unsigned long long device;
        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(places, i), "yKpp", &sources[i].path,
                      &device, &sources[i].xwhiteouts, &sources[i].dot_whiteouts))
            return -1;
        sources[i].device = device;
    }
    return 0;
}

static PyObject *index_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *words[] = {"places", "main", "low", "hash_bits", NULL};
    PyObject *given, *low;
    unsigned long long main;
    int bits = HASH_BITS;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OKO|i", words, &given, &main, &low, &bits))
        return NULL;
    if (bits < 1 || bits > HASH_BITS)
        return PyErr_Format(PyExc_ValueError, "hash_bits must be 1 to %d", HASH_BITS);
    PyObject *places = PySequence_Tuple(given); /* keeps the paths while they are read */
    if (!places)
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(places);
    Source *sources = calloc(count + 1, sizeof *sources);
    Index *self = sources ? (Index *)type->tp_alloc(type, 0) : NULL;
    int failed = !self;
    if (count > UINT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "too many layers");
        failed = 1;
    }
    if (!failed) {
        self->hash_bits = bits;
        failed = read_sources(places, sources, count) ||
             build(self, sources, count, main, low);
    }
    free(sources);
    Py_DECREF(places);
    if (!failed)
        return (PyObject *)self;
    Py_XDECREF(self);
    return PyErr_Occurred() ? NULL : PyErr_NoMemory();
}

static void index_dealloc(Index *self)
{
    if (self->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)self);
    free(self->entries);
    free(self->deeper);
    free(self->names);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static uint64_t packed(uint64_t low, uint16_t position, uint8_t kind)
{
    return low << 20 | (uint64_t)position << 4 | (kind & 0xf);
}

static PyObject *top_of(const Entry *entry)
{
    return PyLong_FromUnsignedLongLong(packed(entry->low, entry->position, entry->kind));
}

/* What lower.Entry is: one number, or a tuple of them, top first. */
static PyObject *value_of(const Index *self, uint32_t slot)
{
    const Entry *entry = &self->entries[slot];
    if (!(entry->kind & MORE))
        return top_of(entry);
    uint32_t low = 0, high = self->deeper_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (self->deeper[middle].slot < slot)
            low = middle + 1;
        else
            high = middle;
    }
    for (high = low; high < self->deeper_count && self->deeper[high].slot == slot; high++)
        ;
    PyObject *all = PyTuple_New(1 + high - low);
    if (!all)
        return NULL;
    PyTuple_SET_ITEM(all, 0, top_of(entry));
    for (uint32_t i = low; i < high; i++) {
        const Deeper *deeper = &self->deeper[i];
        uint64_t number = packed(deeper->low, deeper->position, DIRECTORY);
        PyTuple_SET_ITEM(all, 1 + i - low, PyLong_FromUnsignedLongLong(number));
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(all); i++)
        if (!PyTuple_GET_ITEM(all, i)) {
            Py_DECREF(all);
            return NULL;
        }
    return all;
}

static int64_t find_object(const Index *self, PyObject *name)
{
    char *text;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(name, &text, &length))
        return -2;
    return index_find(self, text, length);
}

static PyObject *index_get(Index *self, PyObject *name)
{
    int64_t slot = find_object(self, name);
    if (slot < -1)
        return NULL;
    if (slot < 0)
        Py_RETURN_NONE;
    return value_of(self, (uint32_t)slot);
}

static PyObject *index_after(Index *self, PyObject *args)
{
    unsigned long long after;
    Py_ssize_t limit;
    if (!PyArg_ParseTuple(args, "Kn", &after, &limit))
        return NULL;
    uint32_t slot = index_above(self, after);
    Py_ssize_t count = (Py_ssize_t)(self->count - slot);
    count = count < limit ? count : limit;
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        const Entry *entry = &self->entries[slot + i];
        PyObject *item = Py_BuildValue(
            "Ky#K", (unsigned long long)entry->key, self->names + entry->name,
            (Py_ssize_t)entry->length,
            (unsigned long long)packed(entry->low, entry->position, entry->kind));
        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static PyObject *index_items(Index *self, PyObject *unused)
{
    PyObject *list = PyList_New(self->count);
    for (uint32_t slot = 0; list && slot < self->count; slot++) {
        const Entry *entry = &self->entries[slot];
        PyObject *value = value_of(self, slot);
        PyObject *item = value ? Py_BuildValue("y#N", self->names + entry->name,
                               (Py_ssize_t)entry->length, value)
                       : NULL;
        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, slot, item);
    }
    return list;
}

static Py_ssize_t index_len(PyObject *self)
{
    return ((Index *)self)->count;
}

static int index_contains(PyObject *self, PyObject *name)
{
    int64_t slot = find_object((Index *)self, name);
    return slot < -1 ? -1 : slot >= 0;
}

static PyMethodDef methods[] = {
    {"get", (PyCFunction)index_get, METH_O, "Return a name's entry, or None."},
    {"after", (PyCFunction)index_after, METH_VARARGS,
     "Return up to `limit` (key, name, packed) behind the key `after`, in listing order."},
    {"items", (PyCFunction)index_items, METH_NOARGS, "Return (name, entry) of all names."},
    {NULL, NULL, 0, NULL},
};

static PySequenceMethods as_sequence = {.sq_length = index_len, .sq_contains = index_contains};

PyTypeObject IndexType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "snapfs.overlay._names.Index",
    .tp_doc = "Merged names of a stack of directories; never changed once built.",
    .tp_basicsize = sizeof(Index),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = index_new,
    .tp_dealloc = (destructor)index_dealloc,
    .tp_weaklistoffset = offsetof(Index, weakrefs),
    .tp_as_sequence = &as_sequence,
    .tp_methods = methods,
};
