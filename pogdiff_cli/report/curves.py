"""The figures with a line a run: loss, exposure, recall against N; and the embedding map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from pogdiff_cli.report.canvas import (
    DASHES,
    INK,
    LINE,
    MARKERS,
    RUN_COLOURS,
    SURFACE,
    Plot,
    axes,
    to_svg,
)
from pogdiff_cli.report.content import EmbeddingMap, IdentityReport, RunReport
from pogdiff_cli.report.plots import count_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMOOTH = 30  # the moving average spans this part of a curve
Array = npt.NDArray[np.float64]


def recall_growth(runs: Sequence[RunReport], group: str) -> Plot | None:
    """Recall grows with the number generated: where a run stands must be read at one N."""
    scored = [(i, run.scores) for i, run in enumerate(runs) if run.scores and group in run.scores.recall_curve]
    if not scored:
        return None
    alt = f"Recall of the group {group} against the number of generated images, one line a run."
    with axes() as (figure, ax):
        for index, scores in scored:
            n, share = zip(*scores.recall_curve[group], strict=True)
            _line(ax, n, share, index, "mark")
        ax.set_xscale("log")
        counts = [n for n, _ in scored[0][1].recall_curve[group]]
        crowded = len(counts) > 1 and counts[-1] < 1.5 * counts[-2]
        ax.set_xticks(counts[:-1] if crowded else counts)
        ax.minorticks_off()
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_ylim(0, 1.03)
        ax.set_xlabel("generated images per identity (logarithmic)")
        ax.set_ylabel(f"recall, {group}")
        svg = to_svg(figure, alt)
    caption = "Expected share of training images covered by N generated ones (Eq. 17)."
    return Plot(title=f"Recall against N, {group}", caption=caption, alt=alt, svg=svg, runs=True)


def loss_curves(runs: Sequence[RunReport]) -> list[Plot]:
    """One figure a part of the loss, one line a run."""
    parts = list(dict.fromkeys(part for run in runs for point in run.losses for part in point.parts))
    return [_loss(runs, part) for part in sorted(parts, key=lambda part: part.startswith("validation"))]


def _loss(runs: Sequence[RunReport], part: str) -> Plot:
    alt = f"The {part} part of the training loss against optimizer steps, one line a run."
    with axes() as (figure, ax):
        for index, run in enumerate(runs):
            points = [(point.step, point.parts[part]) for point in run.losses if part in point.parts]
            if points:
                steps, values = (np.asarray(column, dtype=np.float64) for column in zip(*points, strict=True))
                colour = RUN_COLOURS[index % len(RUN_COLOURS)]
                if len(points) > _SMOOTH:
                    ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                _line(ax, steps, smoothed(values), index, "bare")
        ax.set_xlabel("optimizer step")
        ax.set_ylabel(f"loss: {part}")
        svg = to_svg(figure, alt)
    caption = (
        "On images that were not trained on, of the identities of this group."
        if part.startswith("validation")
        else "Moving average over a thirtieth of the run, the raw values behind it."
    )
    return Plot(title=f"Loss: {part}", caption=caption, alt=alt, svg=svg, runs=True)


def smoothed(values: Array) -> Array:
    """Centred moving average (n,) -> (n,), the window shrinking at both ends; short curves stay."""
    half = len(values) // (2 * _SMOOTH)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    mean: Array = (sums[high] - sums[low]) / (high - low)
    return mean


def exposure(runs: Sequence[RunReport], identities: Sequence[IdentityReport]) -> Plot | None:
    """How often training drew each identity, in the order of the label density."""
    if not any(run.exposure for run in runs):
        return None
    ranked = sorted(identities, key=lambda identity: -identity.train_count)
    alt = "Training images drawn per identity, most photographed identity first, one line a run."
    with axes() as (figure, ax):
        for index, run in enumerate(runs):
            if run.exposure:
                drawn = [run.exposure.get(identity.identity, 0) for identity in ranked]
                _line(ax, range(1, len(drawn) + 1), drawn, index, "mark" if len(drawn) <= 60 else "bare")
        count_axis(ax.xaxis)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("identity, most photographed first")
        ax.set_ylabel("images drawn in training")
        svg = to_svg(figure, alt)
    caption = "What each identity contributed to the gradient: equal heights are balanced sampling."
    return Plot(title="Exposure", caption=caption, alt=alt, svg=svg, runs=True)


def embedding_map(data: EmbeddingMap, name: str, run_names: Sequence[str]) -> Plot:
    """Fig. 9: principal components of one identity's real and generated images, all runs in one map."""
    generated = {run: rows for run, rows in data.generated.items() if len(rows)}
    others = data.real[:0] if data.others is None else data.others
    axis, positions = _flatten(np.concatenate([data.real, others, *generated.values()]))
    alt = f"Map of the embeddings of {name}: {len(data.real)} real images and those generated by each run."
    with axes(height=3.4) as (figure, ax):
        start = len(data.real) + len(others)
        far = positions[len(data.real) : start]
        ax.scatter(far[:, 0], far[:, 1], s=9, c=LINE, marker="o", linewidths=0)
        for run, rows in generated.items():
            index = run_names.index(run) if run in run_names else 0
            block = positions[start : start + len(rows)]
            start += len(rows)
            colour, marker = RUN_COLOURS[index % len(RUN_COLOURS)], MARKERS[index % len(MARKERS)]
            ax.scatter(block[:, 0], block[:, 1], s=22, c=colour, marker=marker, alpha=0.75, linewidths=0)
        real = positions[: len(data.real)]
        ax.scatter(real[:, 0], real[:, 1], s=120, c=INK, marker="*", edgecolors=SURFACE, linewidths=0.8)
        ax.tick_params(labelbottom=False, labelleft=False, length=0)
        ax.set_xlabel(axis[0])
        ax.set_ylabel(axis[1])
        svg = to_svg(figure, alt)
    small = " Small dots are real images of others." if len(others) else ""
    caption = f"Stars are real images, in the features of {data.extractor} (Fig. 9 of the paper).{small}"
    return Plot(title=f"Embedding map: {name}", caption=caption, alt=alt, svg=svg, runs=True)


def _flatten(rows: Array) -> tuple[list[str], Array]:
    """(n, d) -> what the two axes are, and (n, 2) positions on the first principal components of unit rows."""
    from sklearn.decomposition import PCA

    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1.0)  # scores of similarity and identity are cosines
    padded = np.pad(unit, ((0, max(0, 2 - len(unit))), (0, max(0, 2 - unit.shape[1]))))
    model = PCA(2, svd_solver="full")
    positions = np.asarray(model.fit_transform(padded))[: len(rows)]
    names = [
        f"principal component {i + 1} ({share:.0%} of variance)"
        for i, share in enumerate(model.explained_variance_ratio_)
    ]
    return names, positions


def _line(
    ax: Axes,
    x: Sequence[float] | Array,
    y: Sequence[float] | Array,
    index: int,
    marker: Literal["mark", "bare"],
) -> None:
    ax.plot(
        x,
        y,
        color=RUN_COLOURS[index % len(RUN_COLOURS)],
        linestyle=DASHES[index % len(DASHES)],
        marker=MARKERS[index % len(MARKERS)] if marker == "mark" else "",
        markersize=4.5,
    )
