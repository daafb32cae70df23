/* Handed: files that were handed to the kernel straight from an index, without a Node.
 *
 * A tree has one. It counts their lookups until Python needs the file: then `take` moves the count
 * to the Node, which claims its number as long as it counts. INVARIANT a number is counted here or by
 * a Node, never both. A room is a
 * directory of lower layers only; it is closed before anything in it changes, and stays behind
 * closed doors until its files were forgotten, so that each can still be found by its name.
 */
#include "names.h"

#include <structmember.h>

#include <stdlib.h>
#include <string.h>

#define NO_SLOT SIZE_MAX

static size_t place(uint64_t ino, size_t slots)
{
    return (size_t)((ino * 0x9e3779b97f4a7c15u) >> 20) & (slots - 1);
}

/* Open addressing, linear probing; a removal moves followers back, so there are no tombstones. */

static size_t guest_slot(const Handed *self, uint64_t ino)
{
    if (!self->guest_slots)
        return NO_SLOT;
    size_t at = place(ino, self->guest_slots);
    while (self->guests[at].ino && self->guests[at].ino != ino)
        at = (at + 1) & (self->guest_slots - 1);
    return self->guests[at].ino ? at : NO_SLOT;
}

static size_t room_slot(const Handed *self, uint64_t ino)
{
    if (!self->room_slots)
        return NO_SLOT;
    size_t at = place(ino, self->room_slots);
    while (self->rooms[at] && self->rooms[at]->ino != ino)
        at = (at + 1) & (self->room_slots - 1);
    return self->rooms[at] ? at : NO_SLOT;
}

/* Give the guests a table of another size: twice what there are, rounded up. */
static int resize_guests(Handed *self)
{
    size_t slots = 16;
    while (slots < self->guest_count * 2 + 2)
        slots *= 2;
    Guest *moved = calloc(slots, sizeof *moved);
    if (!moved)
        return -1;
    for (size_t i = 0; i < self->guest_slots; i++) {
        if (!self->guests[i].ino)
            continue;
        size_t at = place(self->guests[i].ino, slots);
        while (moved[at].ino)
            at = (at + 1) & (slots - 1);
        moved[at] = self->guests[i];
    }
    free(self->guests);
    self->guests = moved;
    self->guest_slots = slots;
    return 0;
}

static int resize_rooms(Handed *self)
{
    size_t slots = 16;
    while (slots < self->room_count * 2 + 2)
        slots *= 2;
    Room **moved = calloc(slots, sizeof *moved);
    if (!moved)
        return -1;
    for (size_t i = 0; i < self->room_slots; i++) {
        if (!self->rooms[i])
            continue;
        size_t at = place(self->rooms[i]->ino, slots);
        while (moved[at])
            at = (at + 1) & (slots - 1);
        moved[at] = self->rooms[i];
    }
    free(self->rooms);
    self->rooms = moved;
    self->room_slots = slots;
    return 0;
}

static void room_free(Room *room)
{
    for (uint32_t i = 0; i < room->spot_count; i++)
        free(room->spots[i].prefix);
    free(room->spots);
    Py_XDECREF(room->index);
    Py_XDECREF(room->directory);
    free(room);
}

/* Free what nobody needs any more. */
static void sweep(Handed *self)
{
    while (self->left) {
        Room *room = self->left;
        self->left = room->next_left;
        room_free(room);
    }
}

static void leave_behind(Handed *self, Room *room)
{
    room->next_left = self->left;
    self->left = room;
}

/* Take a room out of the table; its guests keep it. */
static void room_leave(Handed *self, size_t at)
{
    Room *room = self->rooms[at];
    size_t mask = self->room_slots - 1, hole = at;
    self->rooms[hole] = NULL;
    self->room_count--;
    for (size_t next = (hole + 1) & mask; self->rooms[next]; next = (next + 1) & mask) {
        size_t home = place(self->rooms[next]->ino, self->room_slots);
        if (((next - home) & mask) >= ((next - hole) & mask)) {
            self->rooms[hole] = self->rooms[next];
            self->rooms[next] = NULL;
            hole = next;
        }
    }
    room->is_open = 0;
    if (!room->users)
        leave_behind(self, room);
}

void handed_pin(Room *room)
{
    room->users++;
}

void handed_unpin(Handed *self, Room *room)
{
    if (!--room->users && !room->is_open)
        leave_behind(self, room);
}

static void guest_leave(Handed *self, size_t at)
{
    Room *room = self->guests[at].room;
    size_t mask = self->guest_slots - 1, hole = at;
    self->guests[hole].ino = 0;
    self->guest_count--;
    for (size_t next = (hole + 1) & mask; self->guests[next].ino; next = (next + 1) & mask) {
        size_t home = place(self->guests[next].ino, self->guest_slots);
        if (((next - home) & mask) >= ((next - hole) & mask)) {
            self->guests[hole] = self->guests[next];
            self->guests[next].ino = 0;
            hole = next;
        }
    }
    if (self->guest_slots > 1024 && self->guest_count * 8 < self->guest_slots)
        resize_guests(self); /* short of memory: the big table stays */
    if (room)
        handed_unpin(self, room);
    else
        self->claimed_count--;
}

Room *handed_room(const Handed *self, uint64_t ino)
{
    size_t at = room_slot(self, ino);
    return at == NO_SLOT ? NULL : self->rooms[at];
}

/* The slot of a number, made if need be; NO_SLOT when memory is short. */
static size_t enter(Handed *self, uint64_t ino, Room *room, uint32_t slot)
{
    size_t at = guest_slot(self, ino);
    if (at != NO_SLOT)
        return at;
    if ((self->guest_count + 1) * 3 > self->guest_slots * 2 && resize_guests(self))
        return NO_SLOT;
    at = place(ino, self->guest_slots);
    while (self->guests[at].ino)
        at = (at + 1) & (self->guest_slots - 1);
    self->guests[at] = (Guest){.ino = ino, .room = room, .slot = slot};
    self->guest_count++;
    if (room)
        room->users++;
    else
        self->claimed_count++;
    return at;
}

int handed_hand(Handed *self, Room *room, uint32_t slot)
{
    uint64_t ino = self->prefix | room->index->entries[slot].low;
    size_t at = enter(self, ino, room, slot);
    if (at == NO_SLOT)
        return 0;
    if (!self->guests[at].count++ && self->places)
        places_note(self->places, ino, room->ino);
    self->total++;
    return 1;
}

int handed_guest(const Handed *self, uint64_t ino, Room **room, uint32_t *slot)
{
    size_t at = guest_slot(self, ino);
    if (at == NO_SLOT || !self->guests[at].room || self->guests[at].is_hidden)
        return 0;
    *room = self->guests[at].room;
    *slot = self->guests[at].slot;
    return 1;
}

void handed_touch(Handed *self, uint64_t ino)
{
    size_t at = guest_slot(self, ino);
    if (at != NO_SLOT)
        self->guests[at].is_touched = 1;
}

void handed_hide(Handed *self, uint64_t ino)
{
    size_t at = guest_slot(self, ino);
    if (at != NO_SLOT && self->guests[at].room)
        self->guests[at].is_hidden = 1;
}

int handed_may_hand(const Handed *self, uint64_t ino)
{
    size_t at = guest_slot(self, ino);
    return at == NO_SLOT || (self->guests[at].room && !self->guests[at].is_hidden);
}

void handed_close_room(Handed *self, uint64_t ino)
{
    size_t at = room_slot(self, ino);
    if (at != NO_SLOT)
        room_leave(self, at);
}

uint64_t handed_forget(Handed *self, uint64_t ino, uint64_t count)
{
    size_t at = guest_slot(self, ino);
    if (at == NO_SLOT || !self->guests[at].room)
        return 0;
    if (count < self->guests[at].count) {
        self->guests[at].count -= (uint32_t)count;
    } else {
        count = self->guests[at].count;
        guest_leave(self, at);
        if (self->places)
            places_drop(self->places, ino);
    }
    self->total -= count;
    return count;
}

int handed_claim_number(Handed *self, uint64_t ino, uint64_t parent)
{
    if (enter(self, ino, NULL, 0) == NO_SLOT)
        return 0;
    if (self->places)
        places_note(self->places, ino, parent);
    return 1;
}

void handed_disclaim_number(Handed *self, uint64_t ino)
{
    size_t at = guest_slot(self, ino);
    if (at == NO_SLOT || self->guests[at].room)
        return;
    guest_leave(self, at);
    if (self->places)
        places_drop(self->places, ino);
}

int handed_is_inherited(const Handed *self, uint64_t ino)
{
    return self->places && places_is_inherited(self->places, ino);
}

uint64_t handed_parent(const Handed *self, uint64_t ino)
{
    return self->places ? places_get(self->places, ino) : 0;
}

int handed_has_node(const Handed *self, uint64_t ino)
{
    size_t at = guest_slot(self, ino);
    return at != NO_SLOT && !self->guests[at].room;
}

static int fill_spots(Room *room, PyObject *places)
{
    Py_ssize_t count = PyTuple_GET_SIZE(places);
    room->spots = calloc(count + 1, sizeof *room->spots);
    if (!room->spots) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        const char *prefix;
        Py_ssize_t length;
        int fd;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(places, i), "iy#", &fd, &prefix, &length))
            return -1;
        char *copy = malloc(length + 1);
        if (!copy) {
            PyErr_NoMemory();
            return -1;
        }
        memcpy(copy, prefix, length + 1);
        room->spots[i] = (Spot){fd, copy, (size_t)length};
        room->spot_count++;
    }
    return 0;
}

static PyObject *handed_open(Handed *self, PyObject *args)
{
    unsigned long long ino, above;
    PyObject *directory, *index, *places;
    if (!PyArg_ParseTuple(args, "KKOO!O!", &ino, &above, &directory, &IndexType, &index,
                          &PyTuple_Type, &places))
        return NULL;
    sweep(self);
    if (room_slot(self, ino) != NO_SLOT)
        Py_RETURN_NONE;
    Room *room = calloc(1, sizeof *room);
    if (!room)
        return PyErr_NoMemory();
    room->ino = ino;
    room->above = above;
    if (fill_spots(room, places)) {
        room_free(room);
        return NULL;
    }
    if ((self->room_count + 1) * 3 > self->room_slots * 2 && resize_rooms(self)) {
        room_free(room);
        return PyErr_NoMemory();
    }
    room->directory = Py_NewRef(directory);
    room->index = (Index *)Py_NewRef(index);
    room->is_open = 1;
    size_t at = place(ino, self->room_slots);
    while (self->rooms[at])
        at = (at + 1) & (self->room_slots - 1);
    self->rooms[at] = room;
    self->room_count++;
    Py_RETURN_NONE;
}

static PyObject *handed_close(Handed *self, PyObject *number)
{
    sweep(self);
    unsigned long long ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    handed_close_room(self, ino);
    Py_RETURN_NONE;
}

static PyObject *handed_has_room(Handed *self, PyObject *number)
{
    unsigned long long ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(room_slot(self, ino) != NO_SLOT);
}

static PyObject *handed_take(Handed *self, PyObject *number)
{
    unsigned long long ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    return PyLong_FromUnsignedLongLong(handed_forget(self, ino, UINT64_MAX));
}

static PyObject *handed_claim(Handed *self, PyObject *number)
{
    unsigned long long ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    if (enter(self, ino, NULL, 0) == NO_SLOT)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *handed_disclaim(Handed *self, PyObject *number)
{
    unsigned long long ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    size_t at = guest_slot(self, ino);
    if (at != NO_SLOT && !self->guests[at].room)
        guest_leave(self, at);
    sweep(self);
    Py_RETURN_NONE;
}

static PyObject *handed_peek(Handed *self, PyObject *number)
{
    unsigned long long ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    size_t at = guest_slot(self, ino);
    if (at == NO_SLOT || !self->guests[at].room)
        Py_RETURN_NONE;
    const Guest *guest = &self->guests[at];
    const Entry *entry = &guest->room->index->entries[guest->slot];
    return Py_BuildValue("Oy#O", guest->room->directory, guest->room->index->names + entry->name,
                         (Py_ssize_t)entry->length, guest->is_hidden ? Py_True : Py_False);
}

static PyObject *handed_touched(Handed *self, PyObject *unused)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < self->guest_slots; i++) {
        const Guest *guest = &self->guests[i];
        if (!guest->ino || !guest->room || !guest->is_touched)
            continue;
        PyObject *number = PyLong_FromUnsignedLongLong(guest->ino);
        if (!number || PyList_Append(list, number))
            Py_CLEAR(list);
        Py_XDECREF(number);
    }
    return list;
}

static PyObject *handed_forget_method(Handed *self, PyObject *args)
{
    unsigned long long ino, count;
    if (!PyArg_ParseTuple(args, "KK", &ino, &count))
        return NULL;
    return PyLong_FromUnsignedLongLong(handed_forget(self, ino, count));
}

/* Forget everything: files, then rooms. */
static PyObject *handed_clear(Handed *self, PyObject *unused)
{
    Guest *guests = self->guests;
    Room **rooms = self->rooms;
    size_t guest_slots = self->guest_slots, room_slots = self->room_slots;
    self->guests = NULL;
    self->rooms = NULL;
    self->guest_slots = self->guest_count = self->claimed_count = 0;
    self->room_slots = self->room_count = 0;
    self->total = 0;
    for (size_t i = 0; i < guest_slots; i++)
        if (guests[i].ino && guests[i].room)
            handed_unpin(self, guests[i].room);
    for (size_t i = 0; i < room_slots; i++) {
        if (!rooms[i])
            continue;
        rooms[i]->is_open = 0;
        if (!rooms[i]->users)
            leave_behind(self, rooms[i]);
    }
    sweep(self);
    free(guests);
    free(rooms);
    Py_RETURN_NONE;
}

static PyObject *handed_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *words[] = {"prefix", "places", NULL};
    unsigned long long prefix;
    PyObject *places = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K|O", words, &prefix, &places))
        return NULL;
    if (places != Py_None && !Py_IS_TYPE(places, &PlacesType)) {
        PyErr_SetString(PyExc_TypeError, "places are Places or None");
        return NULL;
    }
    Handed *self = (Handed *)type->tp_alloc(type, 0);
    if (self) {
        self->prefix = prefix;
        self->places = places == Py_None ? NULL : (Places *)Py_NewRef(places);
    }
    return (PyObject *)self;
}

/* Only rooms in the table are told of: what they hold is found once. */
static int handed_traverse(Handed *self, visitproc visit, void *arg)
{
    for (size_t i = 0; i < self->room_slots; i++)
        if (self->rooms[i])
            Py_VISIT(self->rooms[i]->directory);
    return 0;
}

static int handed_tp_clear(Handed *self)
{
    Py_XDECREF(handed_clear(self, NULL));
    return 0;
}

static void handed_dealloc(Handed *self)
{
    PyObject_GC_UnTrack(self);
    handed_tp_clear(self);
    Py_XDECREF(self->places);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static Py_ssize_t handed_len(PyObject *self)
{
    return (Py_ssize_t)(((Handed *)self)->guest_count - ((Handed *)self)->claimed_count);
}

static PyObject *get_total(Handed *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(self->total);
}

static PyObject *get_rooms(Handed *self, void *unused)
{
    return PyLong_FromSize_t(self->room_count);
}

static PyObject *handed_moved(Handed *self, PyObject *unused)
{
    self->moves++;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"open", (PyCFunction)handed_open, METH_VARARGS,
     "Let files of a directory be handed out: number, that of `..`, Dir, Index, ((fd, prefix) of each place)."},
    {"close", (PyCFunction)handed_close, METH_O, "Hand out no more files of a directory."},
    {"has_room", (PyCFunction)handed_has_room, METH_O, "Whether a directory is open."},
    {"take", (PyCFunction)handed_take, METH_O,
     "Return how often a file was looked up and count it no longer."},
    {"claim", (PyCFunction)handed_claim, METH_O, "Hand a number out no more: a Node counts it."},
    {"disclaim", (PyCFunction)handed_disclaim, METH_O, "End a claim."},
    {"peek", (PyCFunction)handed_peek, METH_O,
     "Return (Dir, name, whether that is gone) of a file, or None."},
    {"touched", (PyCFunction)handed_touched, METH_NOARGS,
     "Return the numbers of files whose data was read."},
    {"forget", (PyCFunction)handed_forget_method, METH_VARARGS,
     "Take lookups of a number back; returns how many were counted here."},
    {"clear", (PyCFunction)handed_clear, METH_NOARGS, "Forget all files and directories."},
    {"moved", (PyCFunction)handed_moved, METH_NOARGS,
     "Say that a directory has moved: names that were noted before may be others."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"total", (getter)get_total, NULL, "Lookups of all files that are counted here.", NULL},
    {"rooms", (getter)get_rooms, NULL, "Directories whose files may be handed out.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef members[] = {
    {"linked", T_BOOL, offsetof(Handed, linked), 0,
     "Files with several names need a Node: the tree has changed some."},
    {"protects", T_BOOL, offsetof(Handed, protects), 0,
     "The upper layer may have immutable and append-only files."},
    {"protects_below", T_BOOL, offsetof(Handed, protects_below), 0,
     "Lower layers may have files that an attribute protects."},
    {NULL, 0, 0, 0, NULL},
};

static PySequenceMethods as_sequence = {.sq_length = handed_len};

PyTypeObject HandedType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "snapfs.overlay._names.Handed",
    .tp_doc = "Files of one tree that the kernel knows and that have no Node.",
    .tp_basicsize = sizeof(Handed),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = handed_new,
    .tp_dealloc = (destructor)handed_dealloc,
    .tp_traverse = (traverseproc)handed_traverse,
    .tp_clear = (inquiry)handed_tp_clear,
    .tp_as_sequence = &as_sequence,
    .tp_methods = methods,
    .tp_members = members,
    .tp_getset = attributes,
};
