"""Parts of a diffusers folder: loaded frozen and from safetensors alone, or copied as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pogdiff_cli.models.foreign import read_from
from pogdiff_cli.models.weights import pipeline_index, read_json

#: Classes that are loaded, and no others; model_index.json may add "Fast".
_TOKENIZERS = ("CLIPTokenizer", "T5Tokenizer")
_TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
#: What published CLIP text encoders' weights begin with.
TEXT_MODEL = "text_model."
_COPIED = (".safetensors", ".json", ".txt", ".model")


def load_component(folder: Path, component: str, name: str, device: torch.device) -> Any:
    """A tokenizer, or a frozen VAE or text encoder on ``device``; ``name`` is its class."""
    with read_from(folder, component):
        return _load(folder, component, name, device)


def _load(folder: Path, component: str, name: str, device: torch.device) -> Any:
    if name in _TOKENIZERS:
        return getattr(transformers, name).from_pretrained(folder, subfolder=component, local_files_only=True)
    read_json(folder / component / "config.json")  # without one, transformers takes a default
    if name == "AutoencoderKL":  # float32: half precision gives black images
        loaded: Any = diffusers.AutoencoderKL.from_pretrained(
            folder, subfolder=component, use_safetensors=True, torch_dtype=torch.float32, local_files_only=True
        )
    else:
        assert name in _TEXT_ENCODERS, name
        # the large one in half precision where that is fast: as it was trained and is published
        half = name == "T5EncoderModel" and device.type == "cuda"
        loaded = getattr(transformers, name).from_pretrained(
            folder,
            subfolder=component,
            use_safetensors=True,
            dtype=torch.bfloat16 if half else torch.float32,
            local_files_only=True,
        )
    return loaded.eval().requires_grad_(False).to(device)


def copy_components(source: Path, folder: Path, kept: Sequence[str], *, trained: str) -> None:
    """Copy components byte for byte, and an index that names them and ``trained`` alone."""
    index = pipeline_index(source)
    for component in [name for name, value in index.items() if isinstance(value, list)]:
        if component in kept:
            shutil.copytree(source / component, folder / component, ignore=_not_copied, dirs_exist_ok=True)
        elif component != trained:
            index[component] = [None, None]
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def replace_weights(component: Path, weights: Mapping[str, Tensor]) -> None:
    """Put ``weights`` into the place of a copied component's own, under the names that its files give them."""
    kept = read_weights(component)
    for path in [*component.glob("*.safetensors"), *component.glob("*.safetensors.index.json")]:
        path.unlink()
    for name, value in weights.items():
        found = name if name in kept else TEXT_MODEL + name  # published CLIPs have names that the class has left
        if found not in kept:
            raise KeyError(f"{component} has no weight {name}")
        kept[found] = value.contiguous()
    save_file(kept, component / "model.safetensors", metadata={"format": "pt"})


def read_weights(component: Path) -> dict[str, Tensor]:
    """Every weight of a component's safetensors files."""
    weights: dict[str, Tensor] = {}
    for path in sorted(component.glob("*.safetensors")):
        if ".fp16." in path.name or ".non_ema." in path.name:
            continue
        with read_from(path.parent, "weights"), safe_open(path, framework="pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    return weights


def _not_copied(folder: str, names: list[str]) -> set[str]:
    """Pickles and code never travel, nor do copies of the weights in another precision."""
    del folder
    return {name for name in names if not name.endswith(_COPIED) or ".fp16" in name or ".non_ema" in name}
