"""``pogdiff fit-density``: the text VAE and the log density of each training caption (Eqs. 10, 11)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.engine.encode import encode_texts, text_key
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.method import inverse_text_density
from pogdiff_cli.models.density import density_diagnostics, fit_density
from pogdiff_cli.project.atomic import atomic_folder, scratch_folder
from pogdiff_cli.project.config import Config
from pogdiff_cli.project.disk import reserve
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.lineage import plan_density
from pogdiff_cli.stages.caption import caption_texts, read_names
from pogdiff_cli.stages.context import Context, Made, Result, perform
from pogdiff_cli.stages.dataset import Dataset, groups, load_dataset, refuse_untrainable
from pogdiff_cli.stages.inputs import caption_cache, input_digests, load_adapter

_READ = 8192  # embeddings read at once


def run(context: Context) -> Result:
    """Write ``artifacts/density``."""
    project = context.project
    dataset = load_dataset(context)
    refuse_untrainable(dataset)
    plan = plan_density(project.config)
    inputs = input_digests(context, plan, dataset)
    return perform(context, plan, inputs, lambda attempt: _fit(context, dataset))


def read_log_density(project: Project, training_rows: int) -> NDArray[np.float64]:
    """Log p(y) of each training row, as ``fit-density`` wrote it."""
    values = np.load(project.density / "log_density.npy", allow_pickle=False)
    if len(values) != training_rows:
        raise PogdiffError(
            f"The density speaks of {len(values)} captions, the data of {training_rows}.",
            hint="Run 'pogdiff fit-density'.",
            exit_code=Exit.MISSING,
        )
    return np.asarray(values, dtype=np.float64)


def inverse_density(config: Config, log_density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eq. (11) on the configured scale."""
    density = config.density
    return inverse_text_density(
        log_density,
        a3=config.train.a3,
        scale=density.scale,
        temperature=density.temperature,
        mean=density.mean,
    )


def _fit(context: Context, dataset: Dataset) -> Made:
    project, density = context.project, context.project.config.density
    texts = _Texts.of(density_texts(context, dataset))
    with scratch_folder(project.cache / "scratch" / "fit-density") as scratch:
        pooled = pooled_embeddings(context, texts.distinct, scratch / "pooled.npy")
        fit = fit_density(
            pooled,
            seed=project.config.seed,
            rows=texts.rows,
            latent_dim=density.latent_dim,
            hidden_dim=density.hidden_dim,
            steps=density.steps,
            learning_rate=density.learning_rate,
            bound=density.bound,
            samples=density.samples,
            track=context.track,
        )
    identity = dataset.records.identity[dataset.train_rows]
    counts = dataset.train_counts()[identity]
    few = np.array([group == "few" for group in groups(context, dataset)])[identity]
    diagnostics = density_diagnostics(fit.log_density, counts, few)
    facts: dict[str, Any] = {
        "captions": len(texts.rows),
        "distinct": len(texts.distinct),
        "text": density.text,
        "log_density_min": round(float(fit.log_density.min()), 4),
        "log_density_max": round(float(fit.log_density.max()), 4),
        "samples": fit.measured.samples,
        "standard_error": _significant(fit.measured.standard_error),
        "precision": fit.measured.precision,
        "rounding_error": _significant(fit.measured.rounding_error),
        **{key: _rounded(value) for key, value in asdict(diagnostics).items()},
    }
    with atomic_folder(project.density) as folder:
        np.save(folder / "log_density.npy", fit.log_density, allow_pickle=False)
        np.save(folder / "loss_curve.npy", fit.loss_curve, allow_pickle=False)
        fit.vae.save(folder / "vae.safetensors")
        (folder / "diagnostics.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    if diagnostics.warning:
        context.say(diagnostics.warning)
    return Made(facts=facts)


def density_texts(context: Context, dataset: Dataset) -> list[str]:
    """The text of each training row whose density counts: its caption, or the evaluation prompt with its name."""
    config = context.project.config
    if config.density.text == "caption":
        return caption_texts(context, dataset)
    names = read_names(context)
    return [config.sample.prompt.format(name=names[dataset.records.name_of(row)]) for row in dataset.train_rows]


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """The distinct texts in order of their first occurrence, and which of them each row has: (n,)."""

    distinct: list[str]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Texts:
        place: dict[str, int] = {}
        rows = np.fromiter((place.setdefault(text, len(place)) for text in texts), dtype=np.int64, count=len(texts))
        return cls(distinct=list(place), rows=rows)


def pooled_embeddings(context: Context, texts: Sequence[str], file: Path) -> NDArray[np.float32]:
    """Pooled text embeddings (m, d) of distinct texts, in ``file`` and memory-mapped."""
    cache = caption_cache(context)
    keys = [text_key(text) for text in texts]
    if cache.missing(keys):
        adapter = load_adapter(context)
        encode_texts(cache, adapter, texts, track=context.track)
        adapter.free_encoders()
    dim = cache.get(keys[:1], ["pooled"])["pooled"].shape[1]
    pooled = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(len(keys), dim))
    reserve(file)
    starts = range(0, len(keys), _READ)
    for start in context.track(starts, "Reading text embeddings", len(starts)):
        part = keys[start : start + _READ]
        pooled[start : start + len(part)] = cache.get(part, ["pooled"])["pooled"].numpy()
    return pooled


def _significant(value: float) -> float:
    return float(f"{value:.3g}")


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
