"""The covariance pass in CUDA C++ (covariance_forward.cu), compiled at first use by the NVRTC that PyTorch carries."""

import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from bayesmem.ops.triton.spans import Spans

HERE = Path(__file__).parent
KEY_KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
MAX_KEY_DIM = 128  # the covariance fits the registers of one multiprocessor
LEAST_CAPABILITY = (8, 0)  # TF32 tensor cores


def settings(key_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """What the source is compiled with."""
    return {
        "K": key_dim,
        "KDIM": -(-key_dim // 16) * 16,
        "SPLIT_KEYS": int(dtype == torch.float32),
        "KEY_KIND": KEY_KINDS[dtype],
    }


def shared_bytes(padded: int) -> int:
    """Size of ``struct Shared`` for keys padded to a multiple of 16."""
    keys, write, partial = 4 * 16 * (padded + 8), 2 * padded * 24, 3 * (padded // 16) * 320
    return 4 * (keys + write + partial + 3 * 320 + 2 * 16 * 24 + 3 * 16 + 4)


@lru_cache
def _kernel(key_dim: int, dtype: torch.dtype, device: int):  # type: ignore[no-untyped-def]
    """The compiled kernel, or ``None`` where it could not be compiled (said once)."""
    defines = "".join(f"#define {name} {value}\n" for name, value in settings(key_dim, dtype).items())
    source = defines + (HERE / "covariance_prelude.cu").read_text() + (HERE / "covariance_forward.cu").read_text()
    try:
        with torch.cuda.device(device):
            capability = "".join(map(str, torch.cuda.get_device_capability(device)))
            kernel = torch.cuda._compile_kernel(source, "covariance_forward", compute_capability=capability)
            kernel.set_shared_memory_config(shared_bytes(settings(key_dim, dtype)["KDIM"]))
    except (RuntimeError, OSError, AttributeError) as reason:
        warnings.warn(
            f"bayesmem: the CUDA covariance kernel did not compile ({reason}); the slower Triton one is used.",
            stacklevel=2,
        )
        return None
    return kernel


def has_cuda_forward(k: Tensor) -> bool:
    """Whether the CUDA kernel can take these keys."""
    if k.device.type != "cuda" or torch.version.cuda is None or k.shape[-1] > MAX_KEY_DIM or k.dtype not in KEY_KINDS:
        return False
    if torch.cuda.get_device_capability(k.device) < LEAST_CAPABILITY:
        return False
    return _kernel(k.shape[-1], k.dtype, k.device.index) is not None


def cuda_forward(
    k: Tensor,
    log_retention: Tensor,
    process_noise: Tensor,
    obs_noise: Tensor,
    floor: Tensor,
    initial_cov: Tensor,
    spans: Spans,
    gain: Tensor,
    innovation_var: Tensor,
    checkpoints: Tensor,
    final_cov: Tensor,
) -> None:
    """Launch the kernel: one block of threads a (sequence, head); the last four tensors are filled."""
    (_, groups, key_dim), heads = k.shape, log_retention.shape[1]
    padded = settings(key_dim, k.dtype)["KDIM"]
    with torch.cuda.device(k.device):
        _kernel(key_dim, k.dtype, k.device.index)(
            grid=(spans.sequences * heads, 1, 1),
            block=(2 * padded + 64, 1, 1),
            args=[
                k,
                log_retention,
                process_noise,
                obs_noise,
                floor,
                initial_cov.contiguous(),
                spans.seq_start,
                spans.chunk_first,
                gain,
                innovation_var,
                checkpoints,
                final_cov,
                heads,
                groups,
                spans.chunk_size // 16,
            ],
            shared_mem=shared_bytes(padded),
        )
