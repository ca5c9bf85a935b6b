"""Checkpoints of others as ours, and a delta rule's back: refused before anything is written, or written whole."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from bayesmem.layers import BayesianLayerConfig
from bayesmem.models import convert_fla, convert_llama, to_fla
from bayesmem.models.checkpoint import SINGLE
from bayesmem.models.movement import Movement, compare, random_tokens
from bayesmem.models.plan import ConversionOptions, Plan
from bayesmem.models.source import CONFIG, Source, read_json

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
KINDS = {**dict.fromkeys(convert_fla.KINDS, convert_fla.plan), **dict.fromkeys(convert_llama.KINDS, convert_llama.plan)}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did.

    Attributes:
        out: the folder that it wrote.
        source: the kind of model it came from.
        design: what the mixers are now.
        parameters: how many numbers the model has.
        ignored: what of the source was left behind, and why.
        moved: how far the function moved; ``None`` where it is the same function.
        notes: what else a user should know.
    """

    out: Path
    source: str
    design: str
    parameters: int
    ignored: Mapping[str, str] = field(default_factory=dict)
    moved: Movement | None = None
    notes: tuple[str, ...] = ()


def convert(path: Path | str, out: Path | str, options: ConversionOptions | None = None) -> Conversion:
    """Read a checkpoint of another library and write it as a BayesMem one.

    Tensors are copied bit by bit, in the dtype that they have; tokenizer and generation config go along.

    Args:
        path: folder of the source, of a ``model_type`` in ``KINDS``.
        out: folder to write, which must not be there or be empty.
        options: how.

    Raises:
        ValueError: a source that is damaged, not understood or of a kind that is not known, or an ``out``
            that holds something. Nothing is written then.
    """
    options, out = options or ConversionOptions(), Path(out)
    _check_out(out)
    source = Source.open(path)
    kind = source.config.get("model_type")
    if kind not in KINDS:
        mend = (
            "it is one of ours already, and --to-fla converts it back" if kind == "bayesmem" else "others are not known"
        )
        raise ValueError(
            f"{source.folder} is of model_type {kind!r}; expected one of {', '.join(map(repr, KINDS))}: {mend}."
        )
    plan = KINDS[kind](source, options)
    moved = None if plan.exact is None else _movement(source, plan, options)
    model = plan.build(source)
    stored = source.folder / "generation_config.json"
    if not stored.is_file():
        for name in SPECIAL_TOKENS:
            setattr(model.generation_config, name, source.config.get(name))

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        _copy(source, folder)

    _write(out, fill)
    mixers = [x for x in plan.config.mixer_configs() if isinstance(x, BayesianLayerConfig)]
    design = mixers[0].model.name if mixers else "softmax attention"
    size = sum(x.numel() for x in model.parameters())
    return Conversion(out, str(kind), design, size, plan.ignored, moved, plan.notes)


def convert_back(path: Path | str, out: Path | str) -> Conversion:
    """Write a BayesMem delta rule as flash-linear-attention's Gated DeltaNet or DeltaNet, bit by bit.

    Args:
        path: folder of a BayesMem checkpoint whose covariance is reset.
        out: folder to write, which must not be there or be empty.

    Raises:
        ValueError: a model without counterpart there, a damaged source, or an ``out`` that holds something.
    """
    out = Path(out)
    _check_out(out)
    source = Source.open(path)
    if (kind := source.config.get("model_type")) != "bayesmem":
        raise ValueError(f"{source.folder} is of model_type {kind!r}; only a 'bayesmem' checkpoint goes back.")
    config, state = to_fla.back(source)
    stored = source.folder / "generation_config.json"
    known = (read_json(stored) if stored.is_file() else {}) | source.config
    config |= {name: known.get(name) for name in SPECIAL_TOKENS}
    config["dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")

    def fill(folder: Path) -> None:
        save_file(state, folder / SINGLE, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _copy(source, folder)

    _write(out, fill)
    return Conversion(out, "bayesmem", config["model_type"], sum(x.numel() for x in state.values()))


def _movement(source: Source, plan: Plan, options: ConversionOptions) -> Movement:
    """How far a model is from one of the source's own function, both in float32."""
    assert plan.exact is not None
    tokens = options.tokens
    if isinstance(tokens, int):
        tokens = random_tokens(plan.config.vocab_size, tokens, options.seed)
    return compare(_logits(plan.exact, source, tokens), _logits(plan, source, tokens))


@torch.no_grad()
def _logits(plan: Plan, source: Source, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T W"]:
    return plan.build(source).float()(tokens, use_cache=False).logits


def _copy(source: Source, folder: Path) -> None:
    for companion in source.companions():
        shutil.copyfile(companion, folder / companion.name)


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and not an empty folder; name another, or remove it.")


def _write(out: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside ``out`` and rename it, so that ``out`` is whole or not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        fill(partial)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
