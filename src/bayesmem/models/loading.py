"""Loading that refuses what does not fit, before any work, by the tensor's name."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from bayesmem.models.checkpoint import check_checkpoint, check_finite, read_checkpoint

OTHERWISE_READ = ("state_dict", "key_mapping", "gguf_file", "variant", "quantization_config")


class CheckedLoading:
    """``from_pretrained`` that does not fill missing tensors with random numbers."""

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, check_finite_values: bool = False, **kwargs: Any) -> Any:
        """Load a saved model, as transformers does.

        Args:
            path: a folder that ``save_pretrained`` wrote, or a name on the hub.
            args: transformers' own.
            check_finite_values: whether to read all values of a folder first and refuse NaN and infinity.
            kwargs: transformers' own.

        Raises:
            ValueError: a folder without safetensors, a damaged or truncated file, or tensors that are
                missing, unexpected or wrongly shaped; they are named.
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError("use_safetensors=False: only safetensors are read, since other formats can run code.")
        kwargs["use_safetensors"] = True
        folder = Path(path, kwargs.get("subfolder") or "") if path is not None else None
        local = folder is not None and folder.is_dir() and not (folder / "adapter_config.json").is_file()
        if local and not any(kwargs.get(name) is not None for name in OTHERWISE_READ):
            stored = read_checkpoint(folder)  # type: ignore[arg-type]
            check_checkpoint(stored, cls._shapes(path, kwargs), shapes=not kwargs.get("ignore_mismatched_sizes"))
            if check_finite_values:
                check_finite(stored)
        report = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        wrong = [f"{name} is missing" for name in sorted(info["missing_keys"])]
        wrong += [f"{name} is not of this model" for name in sorted(info["unexpected_keys"])]
        if wrong:
            raise ValueError(f"{path} does not fit its model: {'; '.join(wrong[:5])}.")
        return (model, info) if report else model

    @classmethod
    def _shapes(cls, path: Any, kwargs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Every tensor that the model of this folder has, tied ones once."""
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            config = cls.config_class.from_pretrained(path if config is None else config, **kwargs)  # type: ignore[attr-defined]
        with torch.device("meta"):
            model: Any = cls(copy.deepcopy(config))  # type: ignore[call-arg]
        tied = set(cls._tied_weights_keys) if config.tie_word_embeddings else set()  # type: ignore[attr-defined]
        return {name: tuple(x.shape) for name, x in model.state_dict().items() if name not in tied}
