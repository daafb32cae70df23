/* The module snapfs.overlay._names: Index, Handed and Places, and the first two for the FUSE side as a capsule. */
#include "names.h"

static NamesApi api = {
    .index_type = &IndexType,
    .handed_type = &HandedType,
    .above = index_above,
    .find = index_find,
    .room = handed_room,
    .hand = handed_hand,
    .guest = handed_guest,
    .hide = handed_hide,
    .may_hand = handed_may_hand,
    .touch = handed_touch,
    .pin = handed_pin,
    .unpin = handed_unpin,
    .close = handed_close_room,
    .forget = handed_forget,
    .is_inherited = handed_is_inherited,
    .has_node = handed_has_node,
    .claim = handed_claim_number,
    .disclaim = handed_disclaim_number,
    .parent = handed_parent,
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_names",
    .m_doc = "Names of merged directories, packed.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__names(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    PyObject *capsule = PyCapsule_New(&api, NAMES_CAPSULE, NULL);
    if (capsule && !PyModule_AddType(module, &IndexType) &&
        !PyModule_AddType(module, &HandedType) && !PyModule_AddType(module, &PlacesType) &&
        !PyModule_AddObjectRef(module, "api", capsule)) {
        Py_DECREF(capsule);
        return module;
    }
    Py_XDECREF(capsule);
    Py_DECREF(module);
    return NULL;
}
