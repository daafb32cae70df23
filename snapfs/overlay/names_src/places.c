/* Places: in which directory each file is that the kernel knows, by numbers, in shared memory.
 *
 * The memory (a memfd) outlives the process that writes it. The one that comes next finds a file by
 * asking for its directory, and that one's, up to a root. It is a hint: a name may have moved in the
 * moment in which the writer was killed, so whoever reads looks whether the file is there.
 *
 * A table of 2^k entries lies at 16 << k, so tables of all sizes have room beside each other and the
 * one word that says which is in use is all there is to change. It has a sum of its own: at another
 * size there are zeros, which nobody would miss. Open addressing, linear probing; a
 * removal moves followers back. An entry's number is written last and cleared first: a kill leaves
 * it out, or twice, or behind one hole, which the next process closes, and never wrong.
 *
 * What is there when a process begins is marked: the kernel may have references to it that nobody has
 * counted. The mark goes with the number, which is dropped once the kernel has let go of it.
 */
#define _GNU_SOURCE
#include "names.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIRST_BITS 8
#define MAGIC UINT64_C(0x326563616c706e73)
#define OLD_MAGIC UINT64_C(0x736563616c706e73) /* of a release without the seal */
#define SIZE_BITS UINT64_C(0xff)
#define SHORT UINT64_C(0x100)
#define INHERITED (UINT64_C(1) << 63) /* of a directory's number, which has no such bit */

typedef struct {
    _Atomic uint64_t magic;
    uint64_t old_bits, old_short; /* what OLD_MAGIC has in place of the seal */
    _Atomic uint64_t seal; /* bits, SHORT when entries may be missing, and a sum of both */
} Head;

static size_t table_at(int bits)
{
    return sizeof(Whereabout) << bits;
}

static Whereabout *table(const Places *self, int bits)
{
    return (Whereabout *)(self->memory + table_at(bits));
}

static Head *head(const Places *self)
{
    return (Head *)self->memory;
}

static uint64_t sealed(uint64_t bits, int is_short)
{
    uint64_t words = bits | (is_short ? SHORT : 0);
    uint64_t sum = (words + 1) * UINT64_C(0x9e3779b97f4a7c15);
    return (sum & ~(SIZE_BITS | SHORT)) | words;
}

/* Say which table is in use, in one store. */
static void seal(const Places *self)
{
    uint64_t word = sealed((uint64_t)self->bits, self->is_short);
    atomic_store_explicit(&head(self)->seal, word, memory_order_release);
}

static size_t home(uint64_t ino, int bits)
{
    return (size_t)((ino * 0x9e3779b97f4a7c15u) >> (64 - bits));
}

/* The entry of a number in the table of a size, or the free one where it belongs. */
static Whereabout *entry_in(const Places *self, int bits, uint64_t ino)
{
    Whereabout *entries = table(self, bits);
    size_t mask = ((size_t)1 << bits) - 1, at = home(ino, bits);
    while (entries[at].ino && entries[at].ino != ino)
        at = (at + 1) & mask;
    return &entries[at];
}

static Whereabout *entry_of(const Places *self, uint64_t ino)
{
    return entry_in(self, self->bits, ino);
}

static void fill(Whereabout *entry, uint64_t ino, uint64_t parent)
{
    atomic_store_explicit(&entry->parent, parent, memory_order_release);
    atomic_store_explicit(&entry->ino, ino, memory_order_release);
}

/* Make the file as big as a table needs; 0, or an errno. */
static int reach(Places *self, int bits)
{
    size_t size = table_at(bits + 1);
    if (size <= self->size)
        return 0;
    struct stat real;
    if (fstat(self->fd, &real) || ((size_t)real.st_size < size && ftruncate(self->fd, size)))
        return errno;
    char *moved = self->memory
                      ? mremap(self->memory, self->size, size, MREMAP_MAYMOVE)
                      : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
    if (moved == MAP_FAILED)
        return errno;
    self->memory = moved;
    self->size = size;
    return 0;
}

/* Begin with an empty table of the first size. */
static int begin_anew(Places *self, int is_short)
{
    if (self->memory)
        munmap(self->memory, self->size);
    self->memory = NULL;
    self->size = self->count = 0;
    int error = ftruncate(self->fd, 0) ? errno : reach(self, FIRST_BITS);
    if (error)
        return error;
    self->bits = FIRST_BITS;
    self->is_short = is_short;
    seal(self);
    head(self)->magic = MAGIC;
    return 0;
}

/* Whether each entry is where it is looked for: a bit that flipped in a number, or in one that
 * others are behind, leaves entries that are not. */
static int is_found_again(const Places *self)
{
    const Whereabout *entries = table(self, self->bits);
    for (size_t i = 0; i < (size_t)1 << self->bits; i++)
        if (entries[i].ino && entry_of(self, entries[i].ino) != &entries[i])
            return 0;
    return 1;
}

/* Move back what is looked for at a hole or before it, and lies behind it. */
static void close_hole(Places *self, size_t hole)
{
    Whereabout *entries = table(self, self->bits);
    size_t mask = ((size_t)1 << self->bits) - 1;
    for (size_t next = (hole + 1) & mask; entries[next].ino; next = (next + 1) & mask) {
        size_t at = home(entries[next].ino, self->bits);
        if (((next - at) & mask) >= ((next - hole) & mask)) {
            fill(&entries[hole], entries[next].ino, entries[next].parent);
            atomic_store(&entries[next].ino, 0);
            hole = next;
        }
    }
    atomic_store(&entries[hole].parent, 0); /* which says that this was the last one */
}

/* Go on with a removal that a kill ended, if an entry is not where it is looked for. What is there
 * instead is the one hole of that removal, which has a parent still, or the same entry as it was
 * moved; behind either no place is free up to the entry. Anything else is damage, and is left. */
static void finish_removal(Places *self)
{
    Whereabout *entries = table(self, self->bits);
    size_t mask = ((size_t)1 << self->bits) - 1, lost = 0;
    while (lost <= mask &&
           (!entries[lost].ino || entry_of(self, entries[lost].ino) == &entries[lost]))
        lost++;
    if (lost > mask)
        return;
    const Whereabout *found = entry_of(self, entries[lost].ino);
    size_t hole = (size_t)(found - entries);
    for (size_t at = (hole + 1) & mask; at != lost; at = (at + 1) & mask)
        if (!entries[at].ino)
            return;
    if (!found->ino && !found->parent)
        return;
    if (found->ino) {
        if (found->parent != entries[lost].parent)
            return;
        atomic_store(&entries[lost].ino, 0);
        self->count--;
        hole = lost;
    }
    close_hole(self, hole);
}

/* Give back the memory of a table, which is zero from then on. */
static int empty(const Places *self, int bits)
{
    return fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, table_at(bits),
                     table_at(bits));
}

/* Go on with a table of another size; without the memory for it, with the present one. Of a number
 * that is there twice, the entry that counts is the one that a search finds. */
static void resize(Places *self, int bits)
{
    if (reach(self, bits) || empty(self, bits))
        return;
    Whereabout *old = table(self, self->bits);
    int old_bits = self->bits;
    self->bits = bits;
    self->count = 0;
    for (size_t i = 0; i < (size_t)1 << old_bits; i++)
        if (old[i].ino && entry_in(self, old_bits, old[i].ino) == &old[i]) {
            fill(entry_of(self, old[i].ino), old[i].ino, old[i].parent);
            self->count++;
        }
    seal(self);
    empty(self, old_bits);
}

void places_note(Places *self, uint64_t ino, uint64_t parent)
{
    Whereabout *entry = entry_of(self, ino);
    if (entry->ino) {
        parent |= entry->parent & INHERITED;
        atomic_store_explicit(&entry->parent, parent, memory_order_release);
        return;
    }
    size_t slots = (size_t)1 << self->bits;
    if ((self->count + 1) * 3 > slots * 2) {
        resize(self, self->bits + 1);
        slots = (size_t)1 << self->bits;
        if (self->count + 2 > slots) /* short of memory: one hint less */
            return;
        entry = entry_of(self, ino);
    }
    fill(entry, ino, parent);
    if (++self->count > self->most)
        self->most = self->count;
}

void places_drop(Places *self, uint64_t ino)
{
    Whereabout *entries = table(self, self->bits), *entry = entry_of(self, ino);
    if (!entry->ino)
        return;
    size_t slots = (size_t)1 << self->bits;
    atomic_store(&entry->ino, 0);
    self->count--;
    close_hole(self, (size_t)(entry - entries));
    if (self->bits > FIRST_BITS + 2 && self->count * 8 < slots)
        resize(self, self->bits - 1);
}

uint64_t places_get(const Places *self, uint64_t ino)
{
    const Whereabout *entry = entry_of(self, ino);
    return entry->ino ? entry->parent & ~INHERITED : 0;
}

int places_is_inherited(const Places *self, uint64_t ino)
{
    const Whereabout *entry = entry_of(self, ino);
    return self->is_short || (entry->ino && entry->parent & INHERITED);
}

static PyObject *take_most(Places *self, PyObject *unused)
{
    (void)unused;
    size_t most = self->most > self->count ? self->most : self->count;
    self->most = self->count;
    return PyLong_FromSize_t(most);
}

static int number(PyObject *object, uint64_t *out)
{
    *out = PyLong_AsUnsignedLongLong(object);
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *note(Places *self, PyObject *const *args, Py_ssize_t count)
{
    uint64_t ino, parent;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "a number and that of its directory");
        return NULL;
    }
    if (number(args[0], &ino) || number(args[1], &parent))
        return NULL;
    if (ino)
        places_note(self, ino, parent);
    Py_RETURN_NONE;
}

static PyObject *drop(Places *self, PyObject *object)
{
    uint64_t ino;
    if (number(object, &ino))
        return NULL;
    if (ino)
        places_drop(self, ino);
    Py_RETURN_NONE;
}

static PyObject *get(Places *self, PyObject *object)
{
    uint64_t ino;
    if (number(object, &ino))
        return NULL;
    return PyLong_FromUnsignedLongLong(ino ? places_get(self, ino) : 0);
}

static PyObject *is_inherited(Places *self, PyObject *object)
{
    uint64_t ino;
    if (number(object, &ino))
        return NULL;
    return PyBool_FromLong(ino && places_is_inherited(self, ino));
}

static PyObject *lose(Places *self, PyObject *unused)
{
    (void)unused;
    self->is_short = 1;
    seal(self);
    Py_RETURN_NONE;
}

static PyObject *below(Places *self, PyObject *args)
{
    unsigned long long root;
    unsigned bits;
    if (!PyArg_ParseTuple(args, "KI", &root, &bits))
        return NULL;
    PyObject *list = PyList_New(0);
    const Whereabout *entries = table(self, self->bits);
    for (size_t i = 0; list && bits < 64 && i < (size_t)1 << self->bits; i++) {
        if (!entries[i].ino || entries[i].ino >> bits != root >> bits)
            continue;
        PyObject *ino = PyLong_FromUnsignedLongLong(entries[i].ino);
        if (!ino || PyList_Append(list, ino))
            Py_CLEAR(list);
        Py_XDECREF(ino);
    }
    return list;
}

/* Read what a dead process said of its table; 0 when it makes no sense. */
static int open_seal(Places *self, uint64_t *bits)
{
    const Head *left = head(self);
    *bits = left->seal & SIZE_BITS;
    self->is_short = (left->seal & SHORT) != 0;
    if (left->magic == OLD_MAGIC) {
        *bits = left->old_bits;
        self->is_short = left->old_short != 0;
    } else if (left->magic != MAGIC || left->seal != sealed(*bits, self->is_short)) {
        return 0;
    }
    return *bits >= FIRST_BITS && *bits <= 40;
}

static void mark_all(Places *self)
{
    Whereabout *entries = table(self, self->bits);
    for (size_t i = 0; i < (size_t)1 << self->bits; i++)
        if (entries[i].ino)
            atomic_fetch_or(&entries[i].parent, INHERITED);
}

static int begin(Places *self)
{
    struct stat found;
    if (fstat(self->fd, &found))
        return errno;
    if (!found.st_size)
        return begin_anew(self, 0);
    int error = reach(self, FIRST_BITS);
    if (error)
        return error;
    uint64_t bits;
    self->damaged =
        !open_seal(self, &bits) || (size_t)found.st_size < table_at((int)bits + 1);
    if (self->damaged)
        return begin_anew(self, 1);
    error = reach(self, (int)bits);
    if (error)
        return error;
    self->bits = (int)bits;
    const Whereabout *entries = table(self, self->bits);
    for (size_t i = 0; i < (size_t)1 << bits; i++)
        self->count += entries[i].ino != 0;
    /* A table is never so full, and one without a free place would be gone through for ever. */
    self->damaged = self->count > ((size_t)1 << bits) - 1;
    if (self->damaged)
        return begin_anew(self, 1);
    finish_removal(self);
    if (!is_found_again(self))
        self->is_short = 1;
    mark_all(self);
    seal(self);
    head(self)->magic = MAGIC;
    return 0;
}

static PyObject *places_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *words[] = {"fd", NULL};
    int fd;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i", words, &fd))
        return NULL;
    Places *self = (Places *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    int error = self->fd < 0 ? errno : begin(self);
    if (error) {
        Py_DECREF(self);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return (PyObject *)self;
}

static void places_dealloc(Places *self)
{
    if (self->memory)
        munmap(self->memory, self->size);
    if (self->fd >= 0)
        close(self->fd);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static Py_ssize_t places_len(PyObject *self)
{
    return (Py_ssize_t)((Places *)self)->count;
}

static PyObject *get_damaged(Places *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->damaged);
}

static PyObject *get_is_short(Places *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->is_short);
}

static PyGetSetDef attributes[] = {
    {"is_short", (getter)get_is_short, NULL, "Whether numbers may be missing that were noted.", NULL},
    {"damaged", (getter)get_damaged, NULL, "Whether what was left made no sense; it is gone.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {
    {"note", (PyCFunction)(void (*)(void))note, METH_FASTCALL, "Note the directory of a number."},
    {"drop", (PyCFunction)drop, METH_O, "Forget a number."},
    {"lose", (PyCFunction)lose, METH_NOARGS, "Say that numbers may be missing, from now on."},
    {"below", (PyCFunction)below, METH_VARARGS,
     "Return the numbers that have the same bits as one, but for so many lower ones."},
    {"is_inherited", (PyCFunction)is_inherited, METH_O,
     "Whether the kernel may have references to a number from before this process."},
    {"take_most", (PyCFunction)take_most, METH_NOARGS,
     "Return how many numbers there were at most since this was asked before."},
    {"get", (PyCFunction)get, METH_O, "Return the number of the directory, 0 when it is not known."},
    {NULL, NULL, 0, NULL},
};

static PySequenceMethods as_sequence = {.sq_length = places_len};

PyTypeObject PlacesType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "snapfs.overlay._names.Places",
    .tp_doc = "In which directory each known file is, in memory that outlives the process.",
    .tp_basicsize = sizeof(Places),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = places_new,
    .tp_dealloc = (destructor)places_dealloc,
    .tp_as_sequence = &as_sequence,
    .tp_methods = methods,
    .tp_getset = attributes,
};
