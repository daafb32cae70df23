/* The face to Python in three files: module.c, hotmodule.c and openedmodule.c. */
#ifndef SNAPFS_MODULE_H
#define SNAPFS_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "opened.h"

PyObject *raise_errno(int error);

extern PyMethodDef hot_methods[];

/* Let Python hear of what events.c has to tell; -1 with an exception set. */
int hot_tell(void);

extern PyTypeObject opened_type;
struct opened_table *opened_table_of(PyObject *opened);

#endif
