"""Every choice of the causal language model, in one place."""

from typing import Any

from transformers import PreTrainedConfig

from bayesmem.design import DesignModel, MixtureModel
from bayesmem.layers import BayesianLayerConfig

OF_ALL_MODELS = {*PreTrainedConfig().to_dict(), *dir(PreTrainedConfig()), "torch_dtype", "attn_implementation"}


class BayesMemConfig(PreTrainedConfig):
    """Sizes of the model, and its mixer as a field.

    Args:
        vocab_size: tokens.
        hidden_size: width D.
        num_hidden_layers: blocks.
        intermediate_size: width of the gated MLP; 0 leaves the MLP out.
        mixer: options of ``BayesianLayerConfig`` but its width, such as
            ``{"num_heads": 4, "head_dim": 64, "design": "gated_deltanet"}``; a design itself is kept as
            plain data.
        norm_eps: epsilon of the RMS norms.
        initializer_range: standard deviation of the initial matrices.
        tie_word_embeddings: whether the output shares the embedding's matrix.
        use_cache: whether generation keeps a belief between tokens.
        kwargs: what every transformers config takes.

    Raises:
        ValueError: sizes below 1, or a key that no config has.
    """

    model_type = "bayesmem"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 256,
        num_hidden_layers: int = 2,
        intermediate_size: int = 512,
        mixer: dict[str, Any] | None = None,
        norm_eps: float | int = 1e-5,
        initializer_range: float | int = 0.02,
        tie_word_embeddings: bool = False,
        use_cache: bool = True,
        **kwargs: Any,
    ):
        unknown = sorted(key for key in kwargs if key not in OF_ALL_MODELS and not key.startswith("_"))
        if unknown:
            raise ValueError(f"unknown config keys {unknown}; mixer options belong into mixer={{...}}.")
        for name, value in (("vocab_size", vocab_size), ("num_hidden_layers", num_hidden_layers)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
        if intermediate_size < 0:
            raise ValueError(f"intermediate_size is {intermediate_size}; expected 0 (no MLP) or more.")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.mixer = dict(mixer or {})
        if isinstance(design := self.mixer.get("design"), DesignModel | MixtureModel):
            self.mixer["design"] = design.to_dict()
        self.norm_eps = norm_eps
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.layer_config()  # refuses bad mixer options now, not at the first forward
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def layer_config(self) -> BayesianLayerConfig:
        """The mixer's configuration.

        Raises:
            ValueError: options that the mixer does not have, or that contradict.
        """
        try:
            return BayesianLayerConfig(**{"norm_eps": self.norm_eps, **self.mixer}, hidden_size=self.hidden_size)
        except TypeError as error:
            known = ", ".join(sorted(set(BayesianLayerConfig.__slots__) - {"hidden_size"}))
            raise ValueError(f"mixer {self.mixer}: {error}; it knows {known}.") from error
