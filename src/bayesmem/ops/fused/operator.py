"""A torch operator that eager code calls without the dispatcher.

``torch.library``'s autograd makes a function of its own at every call, and the dispatcher's way to Python and back adds
to it: together more of the host than some kernels take of the GPU. Eager calls therefore go to the Python function
itself, or to one ``torch.autograd.Function`` around it. ``torch.compile``, ``torch.export``, ``torch.func``, tensor
subclasses and every dispatch mode (fake tensors, selective checkpointing, counters) meet the operator as before.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from bayesmem.ops.triton.tape import taped

PLAIN = frozenset({Tensor, Parameter, int, float, bool, str, torch.dtype, type(None)})  # no tensor of another class


class Operator:
    """``run`` under a name that torch's tracers know.

    Args:
        name: with its namespace.
        run: of tensors, numbers and ``None``, annotated, which changes none of them and returns none of them. What was
            not asked for it may return as ``None``: so eager callers get it, and others an empty tensor in its place.
        repeats: whether its launches depend on kinds of arguments alone, so that eager calls may be made from a tape
            (``ops/triton/tape.py``).
    """

    def __init__(self, name: str, run: Callable[..., Any], repeats: bool = False):
        self.dispatched = torch.library.custom_op(name, _filled(run), mutates_args=())
        self.run = wraps(run)(taped(run)) if repeats else run
        self.function: Any = None
        self.__doc__ = run.__doc__

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Shapes and dtypes of what comes out, for tracers."""
        return self.dispatched.register_fake(_filled(fake))

    def register_autograd(
        self, gradient: Callable[..., Any], context: Callable[..., None], kept: int | None = None
    ) -> None:
        """Give it first derivatives; second ones are refused where they are asked for.

        Args:
            gradient: of ``ctx`` and the gradients of all that ``run`` returns, as of ``torch.autograd.Function``.
            context: of ``ctx``, inputs and output; keeps what ``gradient`` needs.
            kept: how many outputs eager callers get of those that have a gradient; the rest are for ``gradient`` alone.
        """
        backward = _once(gradient, self.run.__name__)
        self.dispatched.register_autograd(backward, setup_context=context)

        # One piece: of a setup_context apart, torch inspects the signature at every call.
        def forward(ctx: Any, *args: Any) -> Any:
            output = self.run(*args)
            context(ctx, args, output)
            return output if kept is None else output[:kept]

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self.function = type(self.run.__name__, (torch.autograd.Function,), methods)

    def __call__(self, *args: Any) -> Any:
        """What ``run`` gives for these, its gradient with it where one is asked for.

        Raises:
            RuntimeError: one is asked for and there is none.
        """
        if torch.compiler.is_compiling() or _modes_active() or not PLAIN.issuperset(map(type, args)):
            return self.dispatched(*args)
        if not torch.is_grad_enabled() or not any(x.requires_grad for x in args if isinstance(x, Tensor)):
            return self.run(*args)
        if self.function is None:
            raise RuntimeError(f"{self.run.__name__} has no gradient of its own; its inputs must not need one.")
        return self.function.apply(*args)


def _filled(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with an empty tensor for every ``None``: the dispatcher's operators return tensors only."""
    signature = inspect.signature(make)
    returned = get_args(signature.return_annotation)

    @wraps(make)
    def filled(*args: Any, **named: Any) -> Any:
        made = make(*args, **named)
        if isinstance(made, Tensor):
            return made
        device = next(x.device for x in made if x is not None)
        return tuple(torch.empty(0, device=device, dtype=torch.float32) if x is None else x for x in made)

    if returned:
        tensors = tuple.__class_getitem__((Tensor,) * len(returned))
        filled.__signature__ = signature.replace(return_annotation=tensors)  # type: ignore[attr-defined]
    return filled


def _modes_active() -> bool:
    """Whether a dispatch mode or a transform of ``torch.func`` is at work."""
    return is_in_torch_dispatch_mode() or torch._C._are_functorch_transforms_active()


def _once(gradient: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``gradient``, whose results refuse to be differentiated.

    torch's ``once_differentiable`` refuses only where the gradients that come in depend on something: a penalty on the
    gradient of a sum would be dropped without a word.
    """
    told = f"the kernels of {name} have first derivatives only".encode()

    def backward(ctx: Any, *given: Tensor | None) -> Any:
        if not torch.is_grad_enabled():
            return gradient(ctx, *given)
        with torch.no_grad():
            found = gradient(ctx, *given)
        every = found if isinstance(found, tuple) else (found,)
        refuse = torch._C._functions.DelayedError(told, len(every))
        return refuse(*(None if x is None else x.detach().requires_grad_() for x in every))  # type: ignore[arg-type]

    return backward


def operator(name: str, repeats: bool = False) -> Callable[[Callable[..., Any]], Operator]:
    """A decorator that makes an ``Operator``."""
    return lambda run: Operator(name, run, repeats)
