"""What is asked of a memory: pure, seeded generators of sequences."""
