"""Benchmarks: ratios against a plain diffusers loop, measured side by side. Each command is one module here."""

import os

# Before any library reads them: nothing is fetched, and only results are printed.
for _variable, _value in {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}.items():
    os.environ.setdefault(_variable, _value)
