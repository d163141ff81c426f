"""The figures per group and identity. Legends stand in the page itself, where any name can be shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pogdiff_cli.metrics.registry import METRICS
from pogdiff_cli.metrics.scores import Scores
from pogdiff_cli.report.canvas import (
    GROUP_COLOUR,
    MARKERS,
    RUN_COLOURS,
    SURFACE,
    Plot,
    axes,
    to_svg,
)
from pogdiff_cli.report.content import IdentityReport, RunReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_ORDER = ("few", "medium", "many", "all")


def label_density(identities: Sequence[IdentityReport]) -> Plot:
    """Figs. 4 and 8: training images of each identity, most first."""
    ranked = sorted(identities, key=lambda identity: -identity.train_count)
    counts = [identity.train_count for identity in ranked]
    alt = (
        f"Bars of training images per identity, sorted: {len(counts)} identities, "
        f"from {max(counts)} images down to {min(counts)}."
    )
    with axes() as (figure, ax):
        colours = [GROUP_COLOUR[identity.shot] for identity in ranked]
        ax.bar(range(1, len(counts) + 1), counts, color=colours, width=0.82)
        if max(counts) > 30 * max(min(counts), 1):
            ax.set_yscale("log")
        count_axis(ax.xaxis)
        ax.grid(visible=False, axis="x")
        ax.set_xlabel("identity, most photographed first")
        ax.set_xlim(0.3, len(counts) + 0.7)
        ax.set_ylabel("training images")
        svg = to_svg(figure, alt)
    caption = "How long the tail is (Figs. 4 and 8 of the paper)."
    return Plot(title="Label density", caption=caption, alt=alt, svg=svg, groups=True)


def weight_against_count(identities: Sequence[IdentityReport]) -> Plot | None:
    """Eq. 11 against what it should undo: the inverse density of an identity's captions and its count."""
    return _against_count(
        [(i, i.psi_inv) for i in identities],
        title="Weight of the neighbour term",
        ylabel="psi_inv, mean per identity",
        caption="Rare identities should weigh more (Eq. 11); a flat cloud means that they do not.",
    )


def density_against_count(identities: Sequence[IdentityReport]) -> Plot | None:
    """Eq. 10 against the count."""
    return _against_count(
        [(i, i.log_density) for i in identities],
        title="Text density",
        ylabel="log-density, nats",
        caption="The evidence bound of an identity's captions (Eq. 10) should rise with their number.",
    )


def _against_count(
    points: Sequence[tuple[IdentityReport, float | None]], *, title: str, ylabel: str, caption: str
) -> Plot | None:
    known = [(identity, value) for identity, value in points if value is not None]
    if not known:
        return None
    alt = f"{title} against the number of training images, one dot an identity, {len(known)} identities."
    spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(known))  # equal counts side by side
    with axes() as (figure, ax):
        counts = np.array([max(identity.train_count, 0.5) for identity, _ in known])
        values = [value for _, value in known]
        colours = [GROUP_COLOUR[identity.shot] for identity, _ in known]
        ax.scatter(counts * 2.0**spread, values, c=colours, s=26, alpha=0.85, linewidths=0)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_xlabel("training images (logarithmic)")
        ax.set_ylabel(ylabel)
        svg = to_svg(figure, alt)
    return Plot(title=title, caption=caption, alt=alt, svg=svg, groups=True)


def metric_by_group(runs: Sequence[RunReport], metric: str) -> Plot | None:
    """Each run's mean with its interval, one row a group."""
    scored = [(index, run.scores) for index, run in enumerate(runs) if run.scores and metric in run.scores.metrics]
    groups = [group for group in _ORDER if any(group in scores.groups for _, scores in scored)]
    if not scored or not groups:
        return None
    info = scored[0][1].metrics[metric]
    meaning = METRICS[metric].meaning
    caption = f"{meaning[0].upper()}{meaning[1:]}."
    alt = f"{info.label} of each run in each frequency group, with intervals; {info.direction} is better."
    with axes(height=0.75 + 0.5 * len(groups)) as (figure, ax):
        for place, (index, scores) in enumerate(scored):
            _dots(ax, scores, metric, groups, index=index, offset=(place - (len(scored) - 1) / 2) * 0.2)
        ax.set_yticks(range(len(groups)), groups)
        ax.set_ylabel("group")
        ax.set_ylim(len(groups) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(f"{METRICS[metric].title}, {info.direction} is better")
        svg = to_svg(figure, alt)
    return Plot(title=info.label, caption=caption, alt=alt, svg=svg, runs=True)


def _dots(ax: Axes, scores: Scores, metric: str, groups: Sequence[str], *, index: int, offset: float) -> None:
    colour = RUN_COLOURS[index % len(RUN_COLOURS)]
    for row, group in enumerate(groups):
        value = scores.groups[group].metrics[metric] if group in scores.groups else None
        if value is None or value.value is None:
            continue
        if value.low is not None and value.high is not None:
            ax.plot([value.low, value.high], [row + offset] * 2, color=colour, linewidth=2, solid_capstyle="round")
        hollow = SURFACE if value.low is None else colour
        ax.plot(
            value.value,
            row + offset,
            MARKERS[index % len(MARKERS)],
            color=colour,
            markerfacecolor=hollow,
            markersize=6.5,
        )


def count_axis(axis: Axis) -> None:
    """Whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
