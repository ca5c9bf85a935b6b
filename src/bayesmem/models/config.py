"""Every choice of the causal language model, in one place."""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from bayesmem.design import DesignModel, MixtureModel
from bayesmem.layers import BayesianLayerConfig
from bayesmem.models.attention import SoftmaxAttentionConfig
from bayesmem.models.remote import AUTO_MAP, write_code

OF_ALL_MODELS = {*PreTrainedConfig().to_dict(), *dir(PreTrainedConfig()), "torch_dtype", "attn_implementation"}
ATTENTION = "attention"


class BayesMemConfig(PreTrainedConfig):
    """Sizes of the model, and its mixers as fields.

    Args:
        vocab_size: tokens.
        hidden_size: width D.
        num_hidden_layers: blocks.
        intermediate_size: width of the gated MLP; 0 leaves the MLP out.
        mixer: options of ``BayesianLayerConfig`` but its width, such as
            ``{"num_heads": 4, "head_dim": 64, "design": "gated_deltanet"}``; a design itself is kept as
            plain data.
        layer_mixers: a list of one mixer a layer, where they differ: ``"attention"``, the name of a design, or
            options that go before those of ``mixer``.
        attention: options of ``SoftmaxAttentionConfig`` but its width, for the softmax attention layers.
        attention_every: the last of every so many layers is softmax attention; 0 is none.
        norm_eps: epsilon of the RMS norms.
        initializer_range: standard deviation of the initial matrices; ``None``: uniform within ``1 / sqrt(inputs)``,
            as torch's linear layers start.
        embedding_range: standard deviation of the initial embeddings, the head's too where it is tied; default:
            ``initializer_range``, which must then be a number.
        tie_word_embeddings: whether the output shares the embedding's matrix.
        use_cache: whether generation keeps a belief between tokens.
        fuse_loss: whether training computes its loss piece by piece, without keeping logits, which it then
            does not return.
        kwargs: what every transformers config takes.

    Raises:
        ValueError: sizes below 1, mixers that do not fit the layers, or a key that no config has.
    """

    model_type = "bayesmem"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 256,
        num_hidden_layers: int = 2,
        intermediate_size: int = 512,
        mixer: dict[str, Any] | None = None,
        layer_mixers: list[str | dict[str, Any]] | None = None,
        attention: dict[str, Any] | None = None,
        attention_every: int = 0,
        norm_eps: float | int = 1e-5,
        initializer_range: float | int | None = 0.02,
        embedding_range: float | int | None = None,
        tie_word_embeddings: bool = False,
        use_cache: bool = True,
        fuse_loss: bool = True,
        **kwargs: Any,
    ):
        kwargs.pop("auto_map", None)  # of the folder it came from; this class has its own
        unknown = sorted(key for key in kwargs if key not in OF_ALL_MODELS and not key.startswith("_"))
        if unknown:
            raise ValueError(f"unknown config keys {unknown}; mixer options belong into mixer={{...}}.")
        for name, value in (("vocab_size", vocab_size), ("num_hidden_layers", num_hidden_layers)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
        if intermediate_size < 0:
            raise ValueError(f"intermediate_size is {intermediate_size}; expected 0 (no MLP) or more.")
        if initializer_range is None and embedding_range is None:
            raise ValueError(
                "initializer_range is None, which says nothing of embeddings; give embedding_range too, such as 0.02."
            )
        for name, deviation in (("initializer_range", initializer_range), ("embedding_range", embedding_range)):
            if deviation is not None and not 0 <= deviation < float("inf"):
                raise ValueError(f"{name} is {deviation}; expected a standard deviation, 0 or more, or None.")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.mixer = _plain(mixer or {})
        self.layer_mixers = None if layer_mixers is None else [_plain(one) for one in layer_mixers]
        self.attention = dict(attention or {})
        self.attention_every = attention_every
        self.norm_eps = norm_eps
        self.initializer_range = initializer_range
        self.embedding_range = embedding_range
        self.use_cache = use_cache
        self.fuse_loss = fuse_loss
        self.auto_map = dict(AUTO_MAP)
        self.layer_config()  # refuses bad mixer options now, not at the first forward
        self.mixer_configs()
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def layer_config(self) -> BayesianLayerConfig:
        """The configuration of the field ``mixer``.

        Raises:
            ValueError: options that the mixer does not have, or that contradict.
        """
        return self._built("mixer", self.mixer, BayesianLayerConfig)

    def mixer_configs(self) -> list[BayesianLayerConfig | SoftmaxAttentionConfig]:
        """The configuration of every layer's mixer.

        Raises:
            ValueError: a count of mixers other than of layers, or options that a mixer does not have.
        """
        return [self._mixer_config(name, one) for name, one in self._named_mixers()]

    def _named_mixers(self) -> list[tuple[str, str | dict[str, Any]]]:
        count, every = self.num_hidden_layers, self.attention_every
        if self.layer_mixers is None:
            if not 0 <= every <= count:
                raise ValueError(f"attention_every is {every}; expected 0 (none) to {count}, the layers.")
            is_attention = [every > 0 and (index + 1) % every == 0 for index in range(count)]
            return [("attention", ATTENTION) if chosen else ("mixer", {}) for chosen in is_attention]
        if every:
            raise ValueError("layer_mixers and attention_every are both given; the list says all: leave out the other.")
        if len(self.layer_mixers) != count:
            raise ValueError(f"layer_mixers has {len(self.layer_mixers)} entries; expected {count}, one a layer.")
        return [(f"layer_mixers[{index}]", one) for index, one in enumerate(self.layer_mixers)]

    def _mixer_config(self, name: str, one: str | dict[str, Any]) -> BayesianLayerConfig | SoftmaxAttentionConfig:
        if one == ATTENTION:
            return self._built("attention", self.attention, SoftmaxAttentionConfig)
        if not isinstance(one, str | dict):
            raise ValueError(f"{name} is {one!r}; expected 'attention', the name of a design, or options as a dict.")
        own = {"design": one} if isinstance(one, str) else one
        return self._built(name, self.mixer | own, BayesianLayerConfig)

    def _built(self, name: str, options: dict[str, Any], kind: type) -> Any:
        try:
            return kind(**{"norm_eps": self.norm_eps, **options}, hidden_size=self.hidden_size)
        except TypeError as error:
            known = ", ".join(sorted(set(kind.__slots__) - {"hidden_size"}))  # type: ignore[attr-defined]
            raise ValueError(f"{name} {options}: {error}; it knows {known}.") from error
        except ValueError as error:
            if name == "mixer":
                raise
            raise ValueError(f"{name}: {error}") from error

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write ``config.json``, and beside it the file that ``trust_remote_code=True`` loads."""
        write_code(Path(save_directory))
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing is left to do: ``save_pretrained`` writes the code in any case."""


def _plain(one: Any) -> Any:
    """A mixer with its design as plain data, which JSON can hold."""
    if isinstance(one, DesignModel | MixtureModel):
        return {"design": one.to_dict()}
    if isinstance(one, dict) and isinstance(one.get("design"), DesignModel | MixtureModel):
        return one | {"design": one["design"].to_dict()}
    return dict(one) if isinstance(one, dict) else one
