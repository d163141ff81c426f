"""``pogdiff export``: a run's weights in the formats of others, with a model card."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pogdiff_cli.engine import exports
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.scores import read_scores
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.models.families import open_backbone
from pogdiff_cli.project.atomic import atomic_file, atomic_folder, sweep_for, write_text
from pogdiff_cli.project.integrity import refuse_damaged
from pogdiff_cli.project.layout import Run
from pogdiff_cli.report.model_card import CardFacts, model_card
from pogdiff_cli.stages.context import Context, command_lock
from pogdiff_cli.stages.dataset import groups, load_dataset
from pogdiff_cli.stages.inputs import backbone_folder

Format = Literal["diffusers", "single-file", "peft", "kohya"]
FORMATS: tuple[Format, ...] = ("diffusers", "single-file", "peft", "kohya")
_FOLDERS = ("diffusers", "peft")
#: What of ``train`` a reader of the card wants to know.
_TOLD = (
    "method",
    "sampling",
    "loss_weight",
    "tuning",
    "max_train_steps",
    "train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written where."""

    run: str
    format: Format
    path: str
    card: str
    bytes: int


def run(
    context: Context, run: Run, *, format: Format, path: Path, precision: exports.Precision = "float32"
) -> Exported:
    """Write ``path``: a folder for diffusers and peft, with the card inside; else a file, with the card beside it."""
    if not run.final.is_dir():
        raise PogdiffError(
            f"The run '{run.name}' has no final weights.",
            hint=f"Run 'pogdiff train --name {run.name}' first.",
            exit_code=Exit.MISSING,
        )
    scores = run.evaluation / "scores.json"
    read = [run.final, *([scores] if scores.is_file() else [])]
    refuse_damaged(context.project, [item.relative_to(context.project.root).as_posix() for item in read])
    _refuse_taken(context, format, path)
    whole = (run.final / "model_index.json").is_file()
    base = run.final if whole else backbone_folder(context)
    adapter = open_backbone(base, device=torch.device("cpu"))
    card = model_card(_facts(context, run, adapter.family))
    with command_lock(context, "export"):
        sweep_for(path)
        beside = _write(adapter, run, base, format=format, path=path, card=card, precision=precision)
    return Exported(run=run.name, format=format, path=str(path), card=str(beside), bytes=_size(path))


def _write(
    adapter: Adapter, run: Run, base: Path, *, format: Format, path: Path, card: str, precision: exports.Precision
) -> Path:
    """The weights and the card; where the card is."""
    if format in _FOLDERS:
        with atomic_folder(path) as folder:
            if format == "diffusers":
                exports.write_pipeline(adapter, run.final, folder)
            else:
                exports.write_peft(adapter, run.final, folder)
            (folder / "README.md").write_text(card, encoding="utf-8")
        return path / "README.md"
    with atomic_file(path) as file:
        if format == "single-file":
            exports.write_single_file(adapter, base, run.final, file, precision)
        else:
            exports.write_kohya(adapter, base, run.final, file)
    beside = path.with_suffix(".md")
    write_text(beside, card)
    return beside


def _refuse_taken(context: Context, format: Format, path: Path) -> None:
    if format not in _FOLDERS and path.suffix != ".safetensors":
        raise PogdiffError(
            f"--format {format} writes one file, and {path} does not end in .safetensors.", exit_code=Exit.USAGE
        )
    taken = [one for one in (path, path.with_suffix(".md")) if one.exists() and (one == path or format not in _FOLDERS)]
    if taken and context.mode != "force":
        raise PogdiffError(f"{taken[0]} exists already.", hint="Add --force to replace it.", exit_code=Exit.USAGE)
    if path.is_dir() and format not in _FOLDERS:
        raise PogdiffError(f"{path} is a folder.", exit_code=Exit.USAGE)
    if path.is_dir() and not _ours(path):
        raise PogdiffError(
            f"{path} is a folder that no export made: it is not replaced.", hint="Name another.", exit_code=Exit.USAGE
        )


def _ours(path: Path) -> bool:
    """Whether a folder holds weights: anything else is never deleted."""
    inside = {item.name for item in path.iterdir()}
    return not inside or bool(inside & {"model_index.json", "adapter_config.json"})


def _facts(context: Context, run: Run, family: str) -> CardFacts:
    config = context.project.config
    dataset = load_dataset(context)
    counts = dataset.train_counts()
    sizes = Counter(group for group, count in zip(groups(context, dataset), counts, strict=True) if count)
    trained = context.project.manifest().record(f"runs/{run.name}/train")
    used = {} if trained is None else trained.parameters
    told = {key: str(used.get(f"train.{key}", getattr(config.train, key))) for key in _TOLD}
    if told["method"] == "pogdiff":
        more = ("a1", "a2", "a3", "neighbour_grad")
        told |= {key: str(used.get(f"train.{key}", getattr(config.train, key))) for key in more}
    scores = run.evaluation / "scores.json"
    return CardFacts(
        title=f"{context.project.root.name}: {run.name}",
        base=config.pretrained_model_name_or_path,
        licence=licence_of(backbone_folder(context)),
        family=family,
        tuning=told["tuning"],
        data={
            "training images": str(len(dataset.train_rows)),
            "held-out images": str(int(dataset.records.heldout.sum())),
            "identities trained on": str(int((counts > 0).sum())),
            f"many (at least {config.data.many_at_least} images)": f"{sizes['many']} identities",
            "medium": f"{sizes['medium']} identities",
            f"few (at most {config.data.few_at_most} images)": f"{sizes['few']} identities",
            "resolution": f"{config.data.resolution} px, {config.data.resize}",
        },
        training={**told, "seed": str(config.seed)},
        scores=read_scores(scores) if scores.is_file() else None,
    )


def licence_of(folder: Path) -> str | None:
    """The licence that a model's own card names in its front matter: by its own name where hubs call it "other"."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")[:100_000]
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    for key in ("license_name", "license"):
        named = re.search(rf"^{key}:\s*[\"']?([\w.+-]+)", front[1] if front else "", re.MULTILINE)
        if named:
            return named[1]
    return None


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
