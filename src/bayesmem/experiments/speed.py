"""Speed of whole models: training steps and generation, ours beside flash-linear-attention's of the same shape."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayesmem.experiments.bench_peers import on_hopper
from bayesmem.experiments.common import build
from bayesmem.report.records import records_in
from bayesmem.train.flops import peak_flops, training_flops

EXPERIMENT = "speed"
PEER = "fla_gated_deltanet"
PARTS = ("training", "generation")


@dataclass(frozen=True, slots=True)
class SpeedConfig:
    """Shape and effort; the defaults are the public 360M shape at 8 heads.

    Attributes:
        hidden_size: width of the model.
        num_layers: blocks.
        num_heads: heads a layer.
        head_dim: K = V of a head.
        vocab_size: tokens of the vocabulary.
        length: tokens a row in training.
        batch_size: rows a step.
        steps: timed steps, of which the median counts, after two that are not.
        prompt: tokens read before generation.
        generated: tokens generated.
        sequences: rows generated side by side.
        seed: of weights and tokens.
    """

    hidden_size: int = 1024
    num_layers: int = 21
    num_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 32_000
    length: int = 4096
    batch_size: int = 8
    steps: int = 8
    prompt: int = 512
    generated: int = 64
    sequences: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (0 if name == "seed" else 1):
                raise ValueError(f"{name} is {value}; expected at least {0 if name == 'seed' else 1}.")

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP by flash-linear-attention's rule: 8/3 of the model's, up to a multiple of 256."""
        return 256 * -(-self.hidden_size * 8 // (3 * 256))


def ours(design: str) -> Callable[[SpeedConfig], nn.Module]:
    """A model of this project with one design in all layers."""

    def make(config: SpeedConfig) -> nn.Module:
        return build(
            config.seed,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            intermediate_size=config.intermediate_size,
            mixer={"num_heads": config.num_heads, "head_dim": config.head_dim, "design": design},
        )

    return make


def peer(config: SpeedConfig) -> nn.Module:
    """flash-linear-attention's own Gated DeltaNet of the same shape."""
    from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM

    on_hopper(config.head_dim)
    torch.manual_seed(config.seed)
    return GatedDeltaNetForCausalLM(
        GatedDeltaNetConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            expand_v=1,
        )
    )


MODELS: dict[str, Callable[[SpeedConfig], nn.Module]] = {
    "bayesian": ours("bayesian"),
    "gated_deltanet": ours("gated_deltanet"),
    PEER: peer,
}


def run(
    config: SpeedConfig,
    out: Path,
    only: tuple[str, ...] = (),
    parts: tuple[str, ...] = PARTS,
    tell: Callable[[str], None] = print,
) -> None:
    """Measure every model on this machine; what the records in ``out`` hold already is skipped.

    Args:
        config: shape and effort.
        out: folder of the records, one a model and part.
        only: names of models, in place of all.
        parts: of ``PARTS``.
        tell: where progress goes.

    Raises:
        ValueError: an unknown model or part.
    """
    for what, given, known in (("model", only, MODELS), ("part", parts, PARTS)):
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"no {what} {unknown[0]!r}; expected of {', '.join(known)}.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    records = records_in(out)
    settings = {part: asdict(config) | {"part": part} for part in PARTS}
    for name in only or MODELS:
        due = [part for part in PARTS if part in parts and not records.find(EXPERIMENT, name, settings[part])]
        if not due:
            tell(f"{name}: recorded already")
            continue
        if name == PEER and device.type == "cpu":
            tell(f"{name}: not run, its kernels need a GPU")
            continue
        for part in due:
            figures = _measured(name, part, config, device)
            records.add(EXPERIMENT, name, settings[part], figures)
            tell(f"{name}, {part}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))


def _measured(name: str, part: str, config: SpeedConfig, device: torch.device) -> dict[str, Any]:
    """One part of a model that is made for it, or why it failed."""
    try:
        model = MODELS[name](config).to(device)
        return (training if part == "training" else generation)(model, config, device)
    except (RuntimeError, ImportError, AssertionError) as reason:
        return {"failed": f"{type(reason).__name__}: {reason}"[:500]}


def training(model: nn.Module, config: SpeedConfig, device: torch.device) -> dict[str, Any]:
    """Tokens a second of a training step (bf16 mixed precision on a GPU, AdamW)."""
    ids, on_gpu = _tokens(config, device), device.type == "cuda"
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=on_gpu)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    model.train()
    seconds = timed(step, config.steps, on_gpu)
    speed = ids.numel() / seconds
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens_per_s": round(speed, 1),
        "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20) if on_gpu else None,
    }
    peak = peak_flops(device, on_gpu)
    if peak is not None and hasattr(getattr(model, "config", None), "mixer_configs"):
        figures["model_flops_utilisation"] = round(speed * training_flops(model, config.length) / peak, 4)
    return figures


def generation(model: nn.Module, config: SpeedConfig, device: torch.device) -> dict[str, Any]:
    """Tokens a second of greedy generation, over all rows; what reading the prompt takes is subtracted."""
    on_gpu = device.type == "cuda"
    prompt = _tokens(config, device)[:1, : config.prompt].expand(config.sequences, -1).contiguous()
    model.eval()

    def generate(tokens: int) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
                # min_new_tokens: an end of sequence must not make one model's rows shorter
                model.generate(  # type: ignore[operator]
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=tokens,
                    min_new_tokens=tokens,
                    do_sample=False,
                    pad_token_id=0,
                )

        return call

    whole, one = (timed(generate(tokens), 3, on_gpu) for tokens in (config.generated + 1, 1))
    return {"generated_tokens_per_s": round(len(prompt) * config.generated / max(whole - one, 1e-9), 1)}


def _tokens(config: SpeedConfig, device: torch.device) -> Tensor:
    source = torch.Generator().manual_seed(config.seed)
    return torch.randint(config.vocab_size, (config.batch_size, config.length), generator=source).to(device)


def timed(step: Callable[[], None], count: int, on_gpu: bool) -> float:
    """Median seconds of ``count`` steps after two that are not counted."""
    spent = []
    for index in range(count + 2):
        start = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize()
        if index > 1:
            spent.append(time.perf_counter() - start)
    return sorted(spent)[len(spent) // 2]
