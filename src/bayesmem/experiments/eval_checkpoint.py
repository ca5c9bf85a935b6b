"""A checkpoint to be evaluated: any causal language model that transformers loads, with its tokenizer."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import bayesmem.models  # noqa: F401  (teaches the Auto classes our models)
from bayesmem.tasks.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is evaluated.

    Attributes:
        label: what it is called in records.
        weights: fingerprint of weights, config and tokenizer.
        model: ready to run.
        tokenizer: its own.
    """

    label: str
    weights: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def load_checkpoint(folder: Path, label: str | None = None, device: str | None = None) -> Checkpoint:
    """Load a folder that ``save_pretrained`` wrote.

    Args:
        folder: holds ``config.json``, safetensors and the tokenizer.
        label: what to call it; default: the folder's name, or its parent's if that is ``model``.
        device: to run on; default: a GPU where there is one.

    Raises:
        ValueError: no model there that transformers can load, or no fast tokenizer.
    """
    weights, tokenizer = weights_of(folder), load_tokenizer(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder))
    except (OSError, KeyError, ImportError, ValueError) as error:
        raise ValueError(
            f"{folder} holds no causal language model that transformers can load ({error}). A Gated DeltaNet of "
            "flash-linear-attention becomes one by `bayesmem convert`, exactly the same function."
        ) from error
    most = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > most:
        raise ValueError(f"the tokenizer in {folder} has {len(tokenizer)} tokens, its model {most}; they do not fit.")
    model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Checkpoint(label or label_of(folder), weights, model, tokenizer)


def label_of(folder: Path) -> str:
    """A folder's name, or its parent's where it is ``model``, as ``bayesmem train`` calls it."""
    whole = folder.resolve()
    return whole.parent.name if whole.name == "model" else whole.name


def weights_of(folder: Path) -> str:
    """Fingerprint of weights, config and tokenizer; it does not change with the folder's name.

    Raises:
        ValueError: no safetensors there.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{folder} holds no *.safetensors; expected a folder that save_pretrained wrote.")
    mark = hashlib.sha256()
    for path in [*weights, folder / "config.json", folder / "tokenizer.json"]:
        if path.is_file():
            with path.open("rb") as file:
                mark.update(hashlib.file_digest(file, "sha256").digest())
    return mark.hexdigest()[:16]
