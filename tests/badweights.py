"""Weights as a stranger could send them: pickles that act when they are read, and safetensors that lie."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Canary:
    """Makes the folder ``place`` when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self._place = str(place)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self._place,)


def pickles(place: Path) -> dict[str, bytes]:
    """Pickles of every kind that libraries of this field write, by ending; each makes ``place``."""
    as_torch, as_legacy, as_npy, as_npz = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": Canary(place)}, as_torch)
    torch.save(Canary(place), as_legacy, _use_new_zipfile_serialization=False)
    objects = np.array([Canary(place)], dtype=object)
    np.save(as_npy, objects, allow_pickle=True)
    np.savez(as_npz, weights=objects)
    return {
        ".pkl": pickle.dumps(Canary(place)),
        ".bin": as_torch.getvalue(),
        ".pt": as_torch.getvalue(),
        ".ckpt": as_legacy.getvalue(),
        ".pth": as_legacy.getvalue(),
        ".npy": as_npy.getvalue(),
        ".npz": as_npz.getvalue(),
    }


def code(place: Path) -> str:
    """A module that makes ``place`` when it is imported, with the classes that a configuration may name."""
    return f"import os\nos.makedirs({str(place)!r}, exist_ok=True)\nclass Own:\n    pass\n"


#: What a configuration says to have its folder's own code loaded.
ASKS_FOR_CODE = {
    "auto_map": {
        "AutoConfig": "own.Own",
        "AutoModel": "own.Own",
        "AutoModelForImageTextToText": "own.Own",
        "AutoTokenizer": ["own.Own", "own.Own"],
        "AutoImageProcessor": "own.Own",
        "AutoProcessor": "own.Own",
    },
    "trust_remote_code": True,
}


def liars() -> dict[str, bytes]:
    """Files named .safetensors that are none."""
    overlapping = {
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    }
    beyond = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    backwards = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}
    return {
        "empty": b"",
        "header of four exabytes": struct.pack("<Q", 2**62) + b"{}",
        "header longer than the file": struct.pack("<Q", 100) + b"{}",
        "overlapping offsets": _safetensors(overlapping, 24),
        "offsets beyond the file": _safetensors(beyond, 16),
        "backward offsets": _safetensors(backwards, 16),
        "nested header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    }


def _safetensors(header: dict[str, Any], size: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def plant(folder: Path, place: Path) -> None:
    """Beside whatever weights ``folder`` and its subfolders hold: pickles under every usual name, and code."""
    kinds = pickles(place)
    names = {
        "pytorch_model.bin": ".bin",
        "diffusion_pytorch_model.bin": ".bin",
        "adapter_model.bin": ".bin",
        "optimizer.bin": ".bin",
        "optimizer.pt": ".pt",
        "scheduler.bin": ".bin",
        "training_args.bin": ".bin",
        "random_states_0.pkl": ".pkl",
        "pytorch_lora_weights.bin": ".bin",
        "model.ckpt": ".ckpt",
        "model.pth": ".pth",
        "embeddings.npz": ".npz",
        "learned_embeds.bin": ".bin",
    }
    for each in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name, kind in names.items():
            (each / name).write_bytes(kinds[kind])
        for name in ("own.py", "pipeline.py", "__init__.py", "conftest.py", "sitecustomize.py"):
            (each / name).write_text(code(place))


def change_json(path: Path, **values: Any) -> None:
    """Put keys into a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
