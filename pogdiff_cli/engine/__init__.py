"""Training and sampling: draws, caches, the step, checkpoints."""
