"""What is learned: a mixer around the filter, in the shape of a Gated DeltaNet layer."""

from bayesmem.layers.cache import LayerCache
from bayesmem.layers.config import BayesianLayerConfig
from bayesmem.layers.mixer import BayesianLayer, LayerOutput

__all__ = ["BayesianLayer", "BayesianLayerConfig", "LayerCache", "LayerOutput"]
