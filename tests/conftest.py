"""What every test shares: one thread a worker, since the workers of xdist fill the cores already."""

import os

import jaxtyping
import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are imported: they then run on the CPU


@pytest.fixture
def unchecked():
    """Switch the type checks of the tests off: what a user without them meets."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
