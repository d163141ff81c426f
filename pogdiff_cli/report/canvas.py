"""matplotlib figures as inline SVG whose colours follow the page: light, dark or printed."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib draws in these stand-ins; ``to_plot`` replaces each by a variable of the page's style sheet.
INK, MUTED, LINE, SURFACE = "#010101", "#010102", "#010103", "#010104"
GROUP_COLOUR = {"few": "#010111", "medium": "#010112", "many": "#010113", "all": "#010114"}
RUN_COLOURS = ("#010121", "#010122", "#010123", "#010124", "#010125", "#010126")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
_VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    SURFACE: "var(--surface)",
    **{colour: f"var(--{group})" for group, colour in GROUP_COLOUR.items()},
    **{colour: f"var(--run{index})" for index, colour in enumerate(RUN_COLOURS)},
}
_STYLE: Any = {  # the stubs of matplotlib name every key
    "svg.fonttype": "none",  # real text: it scales, is selectable, and takes the page's font
    "svg.hashsalt": "pogdiff",
    "text.parse_math": False,
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.facecolor": "none",
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawn figure with the words around it; ``alt`` says what it shows to whoever cannot see it."""

    title: str
    caption: str
    alt: str
    svg: Markup
    runs: bool = False  # has the legend of the runs
    groups: bool = False  # has the legend of the frequency groups


@contextmanager
def axes(width: float = 4.6, height: float = 2.9) -> Iterator[tuple[Figure, Axes]]:
    """One set of axes in inches, narrow enough to be read on a phone unscaled."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as NewFigure

    with mpl.rc_context(_STYLE):
        figure = NewFigure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def to_svg(figure: Figure, alt: str) -> Markup:
    """The figure as an element for the page: no header, metadata or address. To be called inside ``axes``."""
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes), "every axis says what it measures"
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    prefix = f"p{zlib.crc32(alt.encode()):x}"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)  # ids are unique on the page
    label = f'<svg role="img" aria-label="{escape(alt)}"'
    return Markup(text.replace("<svg", label, 1))  # noqa: S704 - drawn here; every outside word was escaped
