/* The face to Python in two files: module.c and hotmodule.c. */
#ifndef SNAPFS_MODULE_H
#define SNAPFS_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *raise_errno(int error);

extern PyMethodDef hot_methods[];

#endif
