"""pogdiff: fine-tune text-to-image diffusion models on long-tailed data, and prove that the tail got better."""

__version__ = "0.1.0"
