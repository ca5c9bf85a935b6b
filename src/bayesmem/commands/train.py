"""``bayesmem train``: a language model from texts, on a laptop, a GPU or many."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bayesmem.commands import options as shared

console = Console()


def train(
    data: Annotated[
        list[str] | None, typer.Argument(help="Text files, folders, or .jsonl(.xz, .gz) files to train on.")
    ] = None,
    out: shared.Out = Path("runs/train"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, options as they were.")
    ] = False,
    held_out: Annotated[
        list[str] | None, typer.Option(help="Files or folders to evaluate on; may be repeated.")
    ] = None,
    text_field: shared.TextField = None,
    tokenizer: Annotated[str | None, typer.Option(help="bytes, bpe (trained here), or a folder of one.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Tokens of a bpe trained here (8192).")] = None,
    prepared: Annotated[
        str | None, typer.Option(help="Folder of tokens and trained tokenizer, which several runs may share.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="Folder of a model to fine-tune.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON of the model's config, in place of the options for its shape.")
    ] = None,
    design: Annotated[str | None, typer.Option(help="Mixer, of `bayesmem designs` (bayesian).")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of the model (256).")] = None,
    layers: Annotated[int | None, typer.Option(help="Blocks (4).")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads a layer (4).")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Key dim of a head (64).")] = None,
    value_dim: Annotated[int | None, typer.Option(help="Value dim of a head (the key dim).")] = None,
    mlp: Annotated[int | None, typer.Option(help="Inner width of the MLP (8/3 of the model's); 0 is none.")] = None,
    attention_every: Annotated[
        int | None, typer.Option(help="The last of every so many layers is softmax attention (0: none).")
    ] = None,
    tie: Annotated[bool | None, typer.Option("--tie/--no-tie", help="One matrix for embedding and output.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget: tokens to train on (10 million).")] = None,
    length: shared.Length = None,
    isolate: shared.Isolate = None,
    batch_size: shared.BatchSize = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Rows a device holds at a time; the rest accumulates.")
    ] = None,
    learning_rate: shared.LearningRate = None,
    schedule: shared.Schedule = None,
    warmup: shared.Warmup = None,
    decay: shared.Decay = None,
    min_lr: shared.MinLr = None,
    weight_decay: shared.WeightDecay = None,
    clip: shared.Clip = None,
    bf16: shared.Bf16 = None,
    recompute: shared.Recompute = None,
    fsdp: Annotated[
        bool | None, typer.Option("--fsdp/--ddp", help="Under torchrun: shard, or copy, the model.")
    ] = None,
    evaluate_every: shared.EvaluateEvery = None,
    evaluate_tokens: shared.EvaluateTokens = None,
    save_every: shared.SaveEvery = None,
    keep: Annotated[int | None, typer.Option(help="Checkpoints kept (1).")] = None,
    log_every: shared.LogEvery = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation, order and everything else (0).")] = None,
) -> None:
    """Train a language model on text. On N GPUs: torchrun --nproc-per-node N -m bayesmem.cli train ...

    Documents are cut into one stream of tokens, prepared once and mapped from disk. Ctrl-C, or a kill of any kind,
    costs what came after the last checkpoint: the same command with --resume goes on. The model, with its tokenizer,
    is in OUT/model, where the Auto classes of transformers load it.
    """
    options = locals()
    shape = ("design", "hidden", "layers", "heads", "head_dim", "value_dim", "mlp", "attention_every", "tie")
    apart = {"out", "resume", "config", *shape}
    given = {name: value for name, value in options.items() if name not in apart and value not in (None, [])}
    asked = {name: options[name] for name in shape if options[name] is not None}
    _quiet()
    import torch.distributed as dist

    from bayesmem.experiments import pretrain
    from bayesmem.train import Interrupted, RunConfig

    if config is not None and asked:
        raise ValueError(f"--config with {', '.join(asked)}: the file says the model's shape; leave out the others.")
    before = pretrain.saved_config(out) if resume else None
    if before is not None:
        base = json.loads(before.to_json())
        if config is not None or asked:
            given["model"] = _from_file(config) if config is not None else _shape(asked, base["model"])
    else:
        base = {}
        if start is None:
            given["model"] = _from_file(config) if config is not None else _shape(asked, {})
        elif config is not None or asked:
            raise ValueError("--from with options for a model's shape: the model in that folder has its own.")
    run_config = RunConfig.of(base | given)
    if not run_config.held_out and before is None:
        _say("no --held-out: nothing is evaluated.")
    try:
        result = pretrain.run(run_config, out, resume=resume, tell=_say)
    except Interrupted as stopped:
        _say(f"[bold]{stopped}.[/bold] The same command with --resume goes on from here.")
        raise typer.Exit(130) from stopped
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    training, evaluations = result.language.training, result.language.evaluations
    _say(
        f"{training.seconds:.0f} s" + (f", gone on from step {training.resumed_from}" if training.resumed_from else "")
    )
    if evaluations:
        last = evaluations[-1]
        bits, perplexity = last["eval_bits_per_byte"], last["eval_perplexity"]
        _say(f"held out: {bits:.4f} bits per byte, perplexity {perplexity:.2f} a token")
    _say(f"model: [bold]{result.language.folder.resolve()}[/bold]")


def _shape(asked: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The model's config from the options for its shape; ``base`` has what they do not say."""
    hidden = asked.get("hidden", base.get("hidden_size", 256))
    inner = 256 * -(-hidden * 8 // (3 * 256))  # 8/3 of the width, in multiples of 256, as Llama's kin have it
    mixer = {"design": "bayesian", "num_heads": 4, "head_dim": 64} | base.get("mixer", {})
    names = {"design": "design", "heads": "num_heads", "head_dim": "head_dim", "value_dim": "value_dim"}
    mixer |= {names[name]: value for name, value in asked.items() if name in names}
    model = {"hidden_size": hidden, "num_hidden_layers": 4, "intermediate_size": inner} | base
    places = {
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "mlp": "intermediate_size",
        "attention_every": "attention_every",
        "tie": "tie_word_embeddings",
    }
    model |= {places[name]: value for name, value in asked.items() if name in places}
    if model.get("attention_every"):
        model.setdefault("attention", {"num_heads": mixer["num_heads"], "head_dim": mixer["head_dim"]})
    return model | {"mixer": mixer}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"--config {path} is no JSON: {error}.") from error
    if not isinstance(given, dict):
        raise ValueError(f"--config {path} holds a {type(given).__name__}; expected the options of BayesMemConfig.")
    unsaid = ("model_type", "architectures", "auto_map", "transformers_version", "dtype")
    return {name: value for name, value in given.items() if name not in unsaid}


def _quiet() -> None:
    """Keep third parties' progress bars and advice out of ours."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        console.print(text, highlight=False, soft_wrap=True)
