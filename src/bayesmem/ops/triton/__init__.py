"""Kernels alone. ``bayesmem.ops.fused`` is their only importer."""
