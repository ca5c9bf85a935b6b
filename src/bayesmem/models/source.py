"""What a conversion reads: a folder in Hugging Face's format, its config as it is and its tensors one by one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from bayesmem.models.checkpoint import WIDTHS, Stored, read_checkpoint

CONFIG = "config.json"
# What lies beside the tensors and goes with a model wherever it goes.
COMPANIONS = (
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer*.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
)


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint whose config and tensor headers were read.

    Attributes:
        folder: where it lies.
        config: ``config.json``.
        stored: file, dtype and shape of every tensor.
    """

    folder: Path
    config: dict[str, Any]
    stored: Mapping[str, Stored]

    @classmethod
    def open(cls, folder: Path | str) -> "Source":
        """Read config and headers.

        Raises:
            ValueError: no such folder, no or an unreadable config, or tensors that ``read_checkpoint`` refuses.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; expected a checkpoint's (one of the hub: download it first).")
        return cls(folder, read_json(folder / CONFIG), read_checkpoint(folder))

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU and in its own dtype.

        Raises:
            ValueError: it is not there, not of floating point, or holds NaN or infinity.
        """
        if name not in self.stored:
            raise ValueError(f"{self.folder} has no tensor {name}.")
        one = self.stored[name]
        if one.dtype not in WIDTHS or WIDTHS[one.dtype] < 2:
            raise ValueError(f"{name} is {one.dtype}; expected floating point of 16 bits or more: dequantise it first.")
        with safe_open(one.file, framework="pt") as file:
            x: Tensor = file.get_tensor(name)
        if not torch.isfinite(x).all():
            raise ValueError(
                f"{one.file}: {name} holds NaN or infinity; no model trained well has that: mend it first."
            )
        return x

    def companions(self) -> list[Path]:
        """Tokenizer files and generation config beside the tensors."""
        return sorted({path for pattern in COMPANIONS for path in self.folder.glob(pattern) if path.is_file()})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: it is not there, not JSON, or something else than an object.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; expected a folder that save_pretrained wrote.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); it is damaged or cut short: copy it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected an object.")
    return found
