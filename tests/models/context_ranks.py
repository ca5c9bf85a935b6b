"""One rank of the model's context-parallel test: ``python -m models.context_ranks RANK WORLD FOLDER``."""

import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F

from bayesmem.models import BayesMemConfig, BayesMemForCausalLM

DESIGNS = ("bayesian", "bayesian_forgetting", "gated_deltanet", "kda", "kalman_diagonal", "mamba2", "deltaproduct")


def check(design: str, packed: bool, recompute: bool) -> None:
    """Losses and gradients, averaged over ranks as DDP does, are those of one process; even slices."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    mixer = {"num_heads": 2, "head_dim": 4, "num_value_heads": 4, "design": design}
    config = BayesMemConfig(vocab_size=11, hidden_size=12, intermediate_size=16, mixer=mixer)
    model = BayesMemForCausalLM(config).double()
    total = 12
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(11, (1 if packed else 2, total), generator=rng)
    targets = torch.randint(11, ids.shape, generator=rng)
    bounds = torch.tensor([0, 5, 6, 10, total]) if packed else None
    padding = torch.tensor([0, 1, 5, 6, 11])  # in front, across the cut and at the end
    mask = None if packed else torch.ones_like(ids).index_fill_(1, padding, 0)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def run(part: slice, group: dist.ProcessGroup | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        own = None if mask is None else mask[:, part]

        logits = model(ids[:, part], attention_mask=own, cu_seqlens=bounds, context_group=group).logits
        value = F.cross_entropy(logits.flatten(0, 1), targets[:, part].flatten())  # the model's own is float32
        value.backward()
        return value.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    expected, right = run(slice(None), None)
    right = [x.clone() for x in right]
    size = total // world
    actual, grads = run(slice(rank * size, (rank + 1) * size), dist.group.WORLD)
    for x in (actual, *grads):
        dist.all_reduce(x)
        x /= world
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)
    for x, y in zip(grads, right, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*gradient_checkpointing_enable.*")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    for design in DESIGNS:
        for packed in (False, True):
            check(design, packed, recompute=packed)
    dist.barrier()
    dist.destroy_process_group()
    Path(folder, f"{rank}.done").touch()
    os._exit(0)  # gloo's threads now and then abort a Python that shuts down ("terminate called without ...")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
