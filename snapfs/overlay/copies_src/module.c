/* The module snapfs.overlay._copies: Source and calls, and copies for the FUSE side as a capsule. */
#include "copies.h"

static CopiesApi api = {
    .open = lower_open,
    .fetch = lower_fetch,
    .copy = lower_copy,
    .dress = lower_dress,
    .is_clean = is_clean,
    .order_content = order_content,
    .close = lower_close,
    .has_name = has_name,
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_copies",
    .m_doc = "Copies of files, and calls of Linux.",
    .m_size = -1,
    .m_methods = calls,
};

PyMODINIT_FUNC PyInit__copies(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    PyObject *capsule = PyCapsule_New(&api, COPIES_CAPSULE, NULL);
    if (capsule && !PyModule_AddType(module, &SourceType) &&
        !PyModule_AddObjectRef(module, "api", capsule)) {
        Py_DECREF(capsule);
        return module;
    }
    Py_XDECREF(capsule);
    Py_DECREF(module);
    return NULL;
}
