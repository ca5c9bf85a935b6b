"""What is shown: records of runs, plots drawn from them, and a page to read."""

BAYESIAN, GATED_DELTA, WIDE_VALUES = "Bayesian Layer", "Gated DeltaNet", "Gated DeltaNet, V = 2K"
