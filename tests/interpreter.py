"""Triton's interpreter, as it is but for work that it does again for nothing: a third of its time with our kernels.

Every call of a function from a kernel goes through all names of ``triton.language`` to put the interpreter's own in
place. They are there already: since the launch, or since the first function of the same module.
"""

from triton.runtime import interpreter

_launch = interpreter.GridExecutor.__call__
_patch, _numpy_type = (getattr(interpreter, name, None) for name in ("_patch_lang", "_get_np_dtype"))
_patched: set[int] = set()  # namespaces of functions, since the launch
_types: dict[str, object] = {}


def launch(kernel, *arguments, **named):
    _patched.clear()
    return _launch(kernel, *arguments, **named)


def patch(function):
    namespace = id(function.__globals__)
    if namespace in _patched:
        return None  # which only a launch would want
    _patched.add(namespace)
    return _patch(function)


def numpy_type(kind):
    name = kind.scalar.name
    if name not in _types:
        _types[name] = _numpy_type(kind.scalar)
    return _types[name]


def hasten() -> None:
    if _patch is None or _numpy_type is None:  # private: without them tests take longer, and are the same
        return
    interpreter.GridExecutor.__call__ = launch
    interpreter._patch_lang = patch
    interpreter._get_np_dtype = numpy_type
