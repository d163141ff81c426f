"""The documentation names every key, command, option, exit code and metric, and its links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pogdiff_cli.cli.app import cli
from pogdiff_cli.errors import Exit
from pogdiff_cli.metrics.registry import METRICS, REQUESTS
from pogdiff_cli.project.config import Config, dotted
from pogdiff_cli.project.yaml_reader import parse_yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> list[str]:
    """Lines of a page without fenced blocks."""
    kept, fenced = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            kept.append(line)
    return kept


def cells(line: str) -> list[str]:
    """Cells of a table's line; an escaped bar belongs to its cell."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def tables(lines: list[str], header: list[str]) -> Iterator[list[str]]:
    """Rows of every table with this header."""
    inside = False
    for line in lines:
        if not line.startswith("|"):
            inside = False
        elif cells(line) == header:
            inside = True
        elif inside and not set(line) <= set("|-: "):
            yield cells(line)


def code(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def sections(page: Path) -> dict[str, list[str]]:
    """Lines below each heading of the second level, by its text."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in prose(page):
        if line.startswith("## "):
            title = line.removeprefix("## ").strip()
        found.setdefault(title, []).append(line)
    return found


def slug(title: str) -> str:
    """The anchor of a heading, as repository hosts make it."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def documented_keys() -> dict[str, str]:
    rows = tables(prose(DOCS / "configuration.md"), ["key", "default", "meaning", "source"])
    return {code(row[0])[0]: row[1] for row in rows}


def test_every_key_of_the_configuration_is_documented_and_no_other() -> None:
    assert set(documented_keys()) == set(dotted(Config(), "", operational="with"))


def test_documented_defaults_are_the_defaults() -> None:
    defaults = dotted(Config(), "", operational="with")
    told = {key: parse_yaml(code(cell)[0]).values for key, cell in documented_keys().items()}
    assert {key: told[key] for key in defaults} == defaults


def test_keys_that_make_nothing_stale_are_marked() -> None:
    rows = tables(prose(DOCS / "configuration.md"), ["key", "default", "meaning", "source"])
    unmarked = {code(row[0])[0] for row in rows if not row[2].startswith("**(op)**")}
    assert unmarked == set(dotted(Config(), "", operational="without"))


def shared_options() -> dict[str, set[str]]:
    """Options of each shared group by its name, from the tables of commands.md."""
    found: dict[str, set[str]] = {}
    lines = sections(DOCS / "commands.md")["Shared options"]
    for group, option, _ in tables(lines, ["group", "option", "meaning"]):
        found.setdefault(group, set()).update(word.split()[0] for word in code(option))
    return found


def documented_options(name: str) -> set[str]:
    lines = sections(DOCS / "commands.md")[f"`{name}`"]
    options = {word.split()[0] for row in tables(lines, ["option", "meaning"]) for word in code(row[0])}
    shared = next((line for line in lines if line.startswith("Shared options: ")), "Shared options: none.")
    groups = shared.removeprefix("Shared options: ").rstrip(".").split(", ")
    known = shared_options() | {"none": set()}
    return options.union(*(known[group] for group in groups))


def test_every_command_is_documented_and_no_other() -> None:
    titles = [code(title)[0] for title in sections(DOCS / "commands.md") if title.startswith("`")]
    assert titles == list(cli.commands)


@pytest.mark.parametrize("name", list(cli.commands))
def test_every_option_of_a_command_is_documented_and_no_other(name: str) -> None:
    parameters = [p for p in cli.commands[name].params if isinstance(p, click.Option)]
    assert documented_options(name) == {option for p in parameters for option in (*p.opts, *p.secondary_opts)}


def test_every_exit_status_is_documented_and_no_other() -> None:
    rows = tables(prose(DOCS / "commands.md"), ["code", "meaning"])
    assert [int(row[0]) for row in rows] == [int(code) for code in Exit]


def test_every_metric_is_documented_with_its_request_and_direction() -> None:
    header = ["metric", "asked for as", "better", "verdict", "definition"]
    rows = tables(prose(DOCS / "evaluation.md"), header)
    told = {code(row[0])[0]: (set(code(row[1])), row[2], row[3] == "yes") for row in rows}
    wanted = {
        name: (
            {request for request, names in REQUESTS.items() if name in names and request != "similarity"},
            metric.direction,
            metric.deciding,
        )
        for name, metric in METRICS.items()
    }
    assert told == wanted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_a_file_and_its_heading(page: Path) -> None:
    broken = []
    for link in _LINK.findall("\n".join(prose(page))):
        target, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        path = (page.parent / target).resolve() if target else page
        lines = prose(path) if anchor and path.is_file() else []
        titles = [slug(line.lstrip("#")) for line in lines if line.startswith("#")]
        if not path.exists() or (anchor and anchor not in titles):
            broken.append(link)
    assert broken == []
