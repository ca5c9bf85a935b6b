"""Triton's interpreter, as it is but for work that it does again for nothing: a third of its time with our kernels.

And, for tests that ask for it, with a GPU's bfloat16.

Every call of a function from a kernel goes through all names of ``triton.language`` to put the interpreter's own in
place. They are there already: since the launch, or since the first function of the same module.
"""

import numpy as np
import torch
import triton.language as tl
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


def widen(x: interpreter.TensorHandle) -> interpreter.TensorHandle:
    """bfloat16 in float32."""
    if x.dtype.scalar != tl.bfloat16:
        return x
    return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def give_bfloat16(monkeypatch) -> None:
    """Products of the numbers, where the interpreter multiplies their bits; rounded to, where it cuts."""
    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def rounded(self, x, kind):
        if (x.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, x, kind)
        bits = torch.from_numpy(np.array(x.data)).bfloat16().view(torch.uint16)
        return interpreter.TensorHandle(bits.numpy(), tl.bfloat16)

    monkeypatch.setattr(builder, "create_dot", lambda self, a, b, *rest: dot(self, widen(a), widen(b), *rest))
    monkeypatch.setattr(builder, "cast_impl", rounded)
