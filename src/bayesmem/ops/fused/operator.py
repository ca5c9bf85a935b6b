"""A torch operator that eager code calls without the dispatcher.

``torch.library``'s autograd makes a function of its own at every call, and the dispatcher's way to Python and back adds
to it: together more of the host than some kernels take of the GPU. Eager calls therefore go to the Python function
itself, or to one ``torch.autograd.Function`` around it. ``torch.compile``, ``torch.export``, ``torch.func`` and every
dispatch mode (fake tensors, selective checkpointing, counters) meet the operator as before.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


class Operator:
    """``run`` under a name that torch's tracers know.

    Args:
        name: with its namespace.
        run: of tensors, numbers and ``None``, annotated, which changes none of them and returns none of them.
    """

    def __init__(self, name: str, run: Callable[..., Any]):
        self.traced = torch.library.custom_op(name, run, mutates_args=())
        self.run = run
        self.function: Any = None
        self.__doc__ = run.__doc__

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Shapes and dtypes of what comes out, for tracers."""
        return self.traced.register_fake(fake)

    def register_autograd(self, gradient: Callable[..., Any], context: Callable[..., None]) -> None:
        """Give it first derivatives.

        Args:
            gradient: of ``ctx`` and the gradients of all that ``run`` returns, as of ``torch.autograd.Function``.
            context: of ``ctx``, inputs and output; keeps what ``gradient`` needs.
        """
        self.traced.register_autograd(gradient, setup_context=context)

        def forward(
            ctx: Any, *args: Any
        ) -> Any:  # in one: with setup_context apart torch binds arguments by inspection
            output = self.run(*args)
            context(ctx, args, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(once_differentiable(gradient))}
        self.function = type(self.run.__name__, (torch.autograd.Function,), methods)

    def __call__(self, *args: Any) -> Any:
        """What ``run`` gives for these, its gradient with it where one is asked for.

        Raises:
            NotImplementedError: one is asked for and there is none.
        """
        if torch.compiler.is_compiling() or _watched() or type(args[0]) not in (Tensor, Parameter):
            return self.traced(*args)
        learning = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)
        if not learning:
            return self.run(*args)
        if self.function is None:
            raise NotImplementedError(f"{self.run.__name__} has no gradient of its own; its inputs must not need one.")
        return self.function.apply(*args)


def _watched() -> bool:
    """Whether a dispatch mode or a transform of ``torch.func`` is at work."""
    return is_in_torch_dispatch_mode() or torch._C._are_functorch_transforms_active()


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """A decorator that makes an ``Operator``."""
    return lambda run: Operator(name, run)
