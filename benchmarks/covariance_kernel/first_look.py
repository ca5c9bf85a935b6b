"""Times the variants of ``kernel.py`` on a GPU and writes benchmarks/records/covariance_kernel.jsonl.

``python benchmarks/covariance_kernel/first_look.py --out FILE``; compiles in parallel, a minute on 16 cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from kernel import run

from bayesmem.ops.covariance_pass import covariance_pass
from bayesmem.report.records import Records

VARIANTS = [
    {"K": K, "NB": NB, "elim": elim, "warps": warps, "prec": prec}
    for K in (128, 64)
    for NB, elim in ((1, 0), (1, 4), (1, 2), (2, 0), (2, 2))
    for warps in (8, 4)
    for prec in ("tf32", "tf32x3", "bf16x3", "bf16x6")
    if NB == 1 or prec in ("tf32", "tf32x3")
]


def make(batch: int, length: int, key_dim: int, heads: int = 8) -> list[torch.Tensor]:
    """Unit bf16 keys, retention from .95, prior mixing, noise from .05."""
    rng = torch.Generator().manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(batch, length, heads, key_dim, generator=rng), dim=-1).bfloat16()
    retention = -0.05 * torch.rand(batch, heads, length, generator=rng)
    noise = torch.rand(batch, heads, length, generator=rng) + 0.05
    prior = torch.eye(key_dim).expand(batch, heads, key_dim, key_dim).contiguous()
    return [x.cuda() for x in (keys, retention, -torch.expm1(2 * retention), noise, prior)]


def gain_error(variant: dict[str, Any]) -> float:
    """Relative error of the gains against the float64 chunk form."""
    options = {name: x for name, x in variant.items() if name != "K"}
    k, retention, added, noise, prior = small = make(1, 200, variant["K"], 2)
    wide = [x.double() for x in (k.transpose(1, 2), retention[..., None], added[..., None], noise, prior)]
    exact = covariance_pass(*wide, None, 64).gain
    found = run(*small, **options)[0].transpose(1, 2).double()
    return ((found - exact).norm() / exact.norm()).item()


def main() -> None:
    """Compile every variant in a process of its own, then time them one by one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "records" / "covariance_kernel.jsonl")
    parser.add_argument("--compile", help="one variant as JSON (what the child processes get)")
    options = parser.parse_args()
    if options.compile:
        variant = json.loads(options.compile)
        run(*make(1, 64, variant.pop("K")), gain_dtype=torch.bfloat16, **variant)
        return
    waiting, running = list(VARIANTS), []
    while waiting or running:
        while waiting and len(running) < 16:
            running.append(subprocess.Popen([sys.executable, __file__, "--compile", json.dumps(waiting.pop(0))]))
        running[0].wait()
        running = [child for child in running if child.poll() is None]
    from elimination_cuda import measure
    from triton.testing import do_bench

    records = Records(options.out)
    records.add("covariance_kernel", "elimination by one warp in CUDA", {"blocks": 64}, measure())
    for variant in VARIANTS:
        error = None if variant["elim"] == 2 else gain_error(variant)
        for batch in (8, 32):
            inputs = make(batch, 4096, variant["K"])
            chosen = {name: x for name, x in variant.items() if name != "K"}
            quantiles = do_bench(
                lambda inputs=inputs, chosen=chosen: run(*inputs, gain_dtype=torch.bfloat16, **chosen),
                warmup=5,
                rep=25,
                quantiles=[0.5, 0.1, 0.9],
            )
            settings = variant | {"B": batch, "T": 4096, "H": 8}
            figures = dict(zip(("median_ms", "low_ms", "high_ms"), quantiles, strict=True)) | {"gain_error": error}
            records.add("covariance_kernel", "triton forward", settings, figures)
            print(settings, f"{quantiles[0]:.3f} ms", error, flush=True)


if __name__ == "__main__":
    main()
