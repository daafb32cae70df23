/* The module snapfs.overlay._copies. */
#include "copies.h"

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
    if (module && PyModule_AddType(module, &SourceType)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
