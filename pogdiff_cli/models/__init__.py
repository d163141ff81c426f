"""Adapters of model families, captioners, feature extractors, the text VAE, neighbours."""
