"""Words from elsewhere in figures and in tables that other programs read: they stay words."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pogdiff_cli.report.canvas import axes, to_svg
from pogdiff_cli.report.tables import Table, to_csv, to_latex, to_markdown

HOSTILE = (
    '"><script>alert(1)</script>',
    "' onload='alert(1)",
    "</svg><img src=x onerror=alert(1)>",
    "<!-- ]]> &#x3c;script&#x3e;",
    "$\\href{javascript:alert(1)}{x}$",
)
CELL = st.text(max_size=12) | st.text(alphabet="=+-@|\\[]()<>&!*{}$%#_^~`\"'\n\r\t x", max_size=12)


class _Read(HTMLParser):
    """Tags, attributes and text as a browser would take them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, str | None] = {}
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


@pytest.mark.parametrize("words", HOSTILE)
def test_words_on_and_around_a_figure_stay_words(words: str) -> None:
    with axes() as (figure, ax):
        ax.plot([0, 1], [0, 1], label=words)
        ax.set_xlabel(words)
        ax.set_ylabel("y")
        read = _Read(to_svg(figure, words))
    assert read.tags & {"script", "img", "a", "iframe"} == set()
    assert not any(name.startswith("on") for name in read.attributes)
    assert read.attributes["aria-label"] == words
    assert words in read.words


@given(st.lists(CELL, min_size=2, max_size=3))
@example(["=cmd()|' /C calc'!A0", "-1.5"])
@example(["\t=1", "\r=1"])
def test_no_cell_of_a_csv_is_a_formula_and_all_come_back(cells: list[str]) -> None:
    text = to_csv(Table(header=tuple("abc"[: len(cells)]), rows=(tuple(cells),)))
    _, row = csv.reader(io.StringIO(text, newline=""))
    for cell, written in zip(cells, row, strict=True):
        assert written in (cell, f"'{cell}")
        assert not written.startswith(("=", "@", "\t", "\r"))
        assert not written.startswith(("+", "-")) or float(written) is not None


@given(st.lists(CELL, min_size=2, max_size=2))
@example(["a\\|b", "c"])
@example(["![x](http://example.org/seen.png)", "[x](javascript:alert(1))"])
@example(["<img src=x>", "a\n\n# b"])
def test_no_cell_of_a_markdown_table_becomes_markup(cells: list[str]) -> None:
    lines = to_markdown(Table(header=("a", "b"), rows=(tuple(cells),))).split("\n")
    assert len(lines) == 4  # header, rule, row, and what follows the last line break
    free = re.sub(r"\\.", "", lines[2])  # as the parsers of tables do: a backslash takes the sign after it along
    assert free.count("|") == 3
    assert "](" not in lines[2]
    assert not {"<", ">"} & set(lines[2])


@given(st.lists(CELL, min_size=2, max_size=2))
@example(["[1em]", "*"])
@example(["\\input{/etc/passwd}", "a\n\nb"])
def test_no_cell_of_a_latex_table_is_a_command(cells: list[str]) -> None:
    (line,) = to_latex(Table(header=("a", "b"), rows=(tuple(cells),))).split("\n")[4:-3]
    assert not line.startswith(("[", "*"))
    assert line.endswith(r" \\")
    known = r"\\textbackslash\{\}|\\textasciitilde\{\}|\\textasciicircum\{\}|\\[&%$#_{}]|\{\}"
    rest = re.sub(known, "", line.removesuffix(r" \\"))
    assert set(rest) & set("\\%$#_{}~^") == set()
    assert rest.count("&") == 1
