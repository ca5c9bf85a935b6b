"""Kernels, and what a device gives them. ``bayesmem.ops.fused`` is the only importer of kernels."""
