"""Released implementations, imported quietly, and the means to run them in float64.

flash-linear-attention's ``naive`` references and transformers' PyTorch paths cast to float32; under
``lifted`` those casts give float64, so that nothing but the algebra is compared.
"""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

with warnings.catch_warnings():
    # Of importing fla where there is no GPU: its kernels are not used here, only its references.
    warnings.filterwarnings("ignore", "Triton is not supported", UserWarning)
    warnings.filterwarnings("ignore", "Flash Attention is not installed", ImportWarning)
    warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
    import fla.ops  # noqa: F401

from fla.ops.delta_rule.naive import delta_rule_chunkwise, delta_rule_recurrence
from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product
from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule, naive_recurrent_gated_delta_rule
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.kda.naive import naive_chunk_kda, naive_recurrent_kda
from fla.ops.linear_attn.naive import naive_chunk_linear_attn, naive_recurrent_linear_attn
from fla.ops.mesa_net.naive import naive_mesa_net_CG, naive_mesa_net_exact
from fla.ops.precond_gated_delta_rule.naive import naive_recurrent_precond_gated_delta_rule
from fla.ops.retention.naive import naive_retention
from fla.ops.simple_gla.naive import (
    naive_chunk_simple_gla,
    naive_parallel_simple_gla,
    naive_recurrent_simple_gla,
)
from transformers.models.mamba2 import modeling_mamba2 as mamba2
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

# With fla installed transformers binds these names to Triton kernels; its own PyTorch path is beneath.
mamba2_chunk_scan = inspect.unwrap(mamba2.mamba2_chunk_scan)
mamba2_selective_state_update = inspect.unwrap(mamba2.mamba2_selective_state_update)
qwen_chunk_gated_delta_rule = inspect.unwrap(qwen3_next.torch_chunk_gated_delta_rule)
qwen_recurrent_gated_delta_rule = inspect.unwrap(qwen3_next.torch_recurrent_gated_delta_rule)

__all__ = [
    "delta_rule_chunkwise",
    "delta_rule_recurrence",
    "lifted",
    "mamba2",
    "mamba2_chunk_scan",
    "mamba2_selective_state_update",
    "naive_chunk_gated_delta_rule",
    "naive_chunk_kda",
    "naive_chunk_linear_attn",
    "naive_chunk_simple_gla",
    "naive_mesa_net_CG",
    "naive_mesa_net_exact",
    "naive_parallel_simple_gla",
    "naive_recurrent_gated_delta_product",
    "naive_recurrent_gated_delta_rule",
    "naive_recurrent_gla",
    "naive_recurrent_kda",
    "naive_recurrent_linear_attn",
    "naive_recurrent_precond_gated_delta_rule",
    "naive_recurrent_simple_gla",
    "naive_retention",
    "qwen3_next",
    "qwen_chunk_gated_delta_rule",
    "qwen_recurrent_gated_delta_rule",
]


@contextmanager
def lifted() -> Iterator[None]:
    """Within, whatever names or defaults to float32 gets float64."""
    default = torch.get_default_dtype()
    with (
        patch.object(torch, "float32", torch.float64),
        patch.object(torch, "float", torch.float64),
        patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
