"""Finds pretrained weights on this machine, and takes none that could run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.foreign import refuse_adapter

#: Parts of published pipelines that training and sampling do without.
_NEVER_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
_WITH_WEIGHTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


#: Of a published pipeline: its card (for the licence), configurations, tokenizers and weights in full precision.
_FETCHED = ("README.md", "*.json", "*/*.txt", "*/*.model", "*/*.safetensors")
#: Weights again in half precision (in shards, too), without averaging, in other layouts; and what is never loaded.
_NOT_FETCHED = ("*.fp16*", "*.non_ema*", "safety_checker/*", "text_encoders/*", "vae_1_0/*")


def fetch_command(name: str) -> str:
    """What to type to have a hub model's configuration and safetensors on this machine."""
    kept = " ".join(f"--include '{pattern}'" for pattern in _FETCHED)
    left_out = " ".join(f"--exclude '{pattern}'" for pattern in _NOT_FETCHED)
    return f"hf download {name} {kept} {left_out}"


def resolve_pipeline(name_or_path: str, root: Path, *, weights: Literal["needed", "not needed"] = "needed") -> Path:
    """The local folder of a diffusers pipeline: a folder (relative to the project), or a hub id in the cache.

    Nothing is downloaded here. Where weights are not needed a folder of configurations is enough. Raises PogdiffError
    (exit 4) with the command that fetches what is missing.
    """
    local = (root / name_or_path).expanduser()
    if local.is_dir():
        return _checked(local, name_or_path, weights)
    if _looks_like_path(name_or_path):
        raise PogdiffError(
            f"There is no model folder {local}.",
            hint="Set pretrained_model_name_or_path to a diffusers folder or a hub id.",
            exit_code=Exit.MISSING,
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _checked(Path(snapshot_download(name_or_path, local_files_only=True)), name_or_path, weights)
    except (LocalEntryNotFoundError, HFValidationError, FileNotFoundError):
        raise PogdiffError(
            f"The weights of '{name_or_path}' are not on this machine.",
            hint=f"Fetch them with:  {fetch_command(name_or_path)}",
            exit_code=Exit.MISSING,
        ) from None


def component_classes(folder: Path) -> dict[str, str]:
    """Class name of each component of a pipeline folder, from its ``model_index.json``."""
    index = pipeline_index(folder)
    return {
        name: str(value[1])
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] is not None
    }


def pipeline_index(folder: Path) -> dict[str, Any]:
    """What ``model_index.json`` says; exit 4 where the folder is no pipeline."""
    if not (folder / "model_index.json").is_file():
        raise PogdiffError(
            f"{folder} is no diffusers pipeline: it has no model_index.json.",
            hint="Set pretrained_model_name_or_path to a diffusers folder or a hub id.",
            exit_code=Exit.MISSING,
        )
    return read_json(folder / "model_index.json")


def read_json(path: Path) -> dict[str, Any]:
    """A component's JSON object; exit 4 where it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _damaged(f"The pipeline is incomplete: there is no {path}.") from None
    except (ValueError, RecursionError):
        raise _damaged(f"{path} is not valid JSON.") from None
    if not isinstance(values, dict):
        raise _damaged(f"{path} does not hold a JSON object.")
    return values


def _damaged(message: str) -> PogdiffError:
    return PogdiffError(message, hint="Fetch the model again.", exit_code=Exit.MISSING)


def _checked(folder: Path, name: str, weights: str) -> Path:
    index = pipeline_index(folder)
    for component, value in index.items():
        if component.startswith("_") or component in _NEVER_LOADED:
            continue
        library = value[0] if isinstance(value, list) and value else None
        if library not in (None, "diffusers", "transformers"):
            raise PogdiffError(
                f"'{name}' wants to run code of its own for '{component}' ({library}); pogdiff never does that.",
                hint="Use a model whose components are classes of diffusers and transformers.",
                exit_code=Exit.MISSING,
            )
    for component in _WITH_WEIGHTS if weights == "needed" else ():
        part = folder / component
        refuse_adapter(part, component)
        if part.is_dir() and not any(part.glob("*.safetensors")):
            raise PogdiffError(
                f"'{name}' has no safetensors file in {component}/ (pickled weights are not loaded).",
                hint="Use a revision with safetensors, or convert the model with diffusers.",
                exit_code=Exit.MISSING,
            )
    return folder


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1
