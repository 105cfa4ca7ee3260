// In Python's place for _llm_runner of executorch 1.5.1, whose tokenizers need none of it. The linker wants the data
// whose addresses it takes; functions stay undefined, as a program that binds lazily never asks.
#define DATA(name) extern "C" { char name[1024]; }

DATA(PyBaseObject_Type) DATA(PyByteArray_Type) DATA(PyCFunction_Type) DATA(PyCapsule_Type) DATA(PyDict_Type)
DATA(PyExc_BufferError) DATA(PyExc_ImportError) DATA(PyExc_IndexError) DATA(PyExc_MemoryError)
DATA(PyExc_OverflowError) DATA(PyExc_RuntimeError) DATA(PyExc_SystemError) DATA(PyExc_TypeError)
DATA(PyExc_ValueError) DATA(PyFloat_Type) DATA(PyFrozenSet_Type) DATA(PyGen_Type) DATA(PyInstanceMethod_Type)
DATA(PyMethod_Type) DATA(PyModule_Type) DATA(PyObject_GenericGetDict) DATA(PyObject_GenericSetDict)
DATA(PyProperty_Type) DATA(PySet_Type) DATA(PyType_Type) DATA(_Py_FalseStruct) DATA(_Py_NoneStruct)
DATA(_Py_NotImplementedStruct) DATA(_Py_TrueStruct)
