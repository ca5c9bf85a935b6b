"""What every test shares: one thread a worker, since the workers of xdist fill the cores already."""

import os
from importlib.util import cache_from_source, find_spec

import jaxtyping
import jaxtyping._import_hook as import_hook
import pytest
import torch

try:
    from xdist.scheduler import LoadScopeScheduling
except ImportError:  # one process then
    LoadScopeScheduling = object

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are imported: they then run on the CPU
    if find_spec("triton"):
        from interpreter import hasten

        hasten()

# While one of our modules is imported, the hook of the type checks looks under its own names for the compiled form of
# whatever that module imports too, and so compiles torch._dynamo and transformers anew. Those have nothing to check.
_of_hook = getattr(import_hook, "_optimized_cache_from_source", None)


def _compiled(hook: str, path: str, *options: str | None, **named: str | None) -> str:
    foreign = "/site-packages/" in path and "/site-packages/bayesmem/" not in path
    return cache_from_source(path, *options, **named) if foreign else _of_hook(hook, path, *options, **named)


if _of_hook is not None:  # private: without it tests start later, and are the same
    import_hook._optimized_cache_from_source = _compiled


# Files whose tests share something that takes long to make: each goes to one worker, or every worker would make it.
TOGETHER = ("experiments/test_collision.py", "train/test_distill_run.py", "train/test_ranks.py")


class Scheduling(LoadScopeScheduling):
    """Test by test, save for the files above. (Of xdist's own, loadgroup does nothing under pytest 9.)"""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return file if file.endswith(TOGETHER) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log) if config.option.dist == "load" else None  # which is what -n alone gives


@pytest.fixture
def bfloat16(monkeypatch):
    """Kernels know bfloat16, which Triton's interpreter does not."""
    if not torch.cuda.is_available():
        from interpreter import give_bfloat16

        give_bfloat16(monkeypatch)


@pytest.fixture
def unchecked():
    """Switch the type checks of the tests off: what a user without them meets."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
