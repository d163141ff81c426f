"""Benchmarks: ratios against a plain diffusers loop, measured side by side. Each file here is one command."""
