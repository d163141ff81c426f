"""Scored runs side by side: of one project, of several, and apart from them what the paper prints."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import Command
from test_scores import people, scored

from pogdiff_cli.metrics.scores import Scores
from pogdiff_cli.project.manifest import Manifest, StageRecord, write_manifest
from pogdiff_cli.report.paper import paper_table, printed, reference_values


def project(root: Path, runs: Mapping[str, Scores | None]) -> Path:
    """A project folder with these runs; one with None has been trained and not scored."""
    root.mkdir(parents=True)
    (root / "pogdiff.yaml").write_text("seed: 0\n")
    record = StageRecord(command="", state="done")
    write_manifest(root / "manifest.yaml", Manifest(runs={name: {"train": record} for name in runs}))
    for name, scores in runs.items():
        folder = root / "runs" / name / "evaluation"
        folder.mkdir(parents=True)
        if scores is not None:
            body = dataclasses.replace(scores, run=name).to_json()
            (folder / "scores.json").write_text(json.dumps(body))
    return root


@pytest.fixture(scope="module")
def runs() -> dict[str, Scores]:
    requests = ("fid", "recall", "identity")
    return {
        "pogdiff": scored(people(tails=12, tail_error=0.1, seed=2), requests),
        "vanilla": scored(people(tails=12, tail_error=0.7, seed=1), requests),
    }


@pytest.fixture
def root(tmp_path: Path, runs: dict[str, Scores]) -> Path:
    return project(tmp_path / "faces", {**runs, "unscored": None})


def values(out: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(out)))


def test_every_scored_run_is_shown_with_intervals_vanilla_first(pogdiff: Command, root: Path) -> None:
    shown = pogdiff("compare", "-C", root, "--json")
    assert shown.status == 0, shown.err
    found = json.loads(shown.out)
    assert list(dict.fromkeys(value["run"] for value in found["values"])) == ["vanilla", "pogdiff"]
    fid = next(v for v in found["values"] if (v["run"], v["group"], v["metric"]) == ("pogdiff", "few", "fid"))
    assert fid["low"] < fid["value"] < fid["high"]
    assert (fid["identities"], fid["images"], fid["extractor"], fid["digest"]) == (12, "8", "dlib", "sha256:0")
    assert found["paper"] is None


def test_each_further_run_is_compared_with_the_first(pogdiff: Command, root: Path) -> None:
    shown = pogdiff("compare", "-C", root, "pogdiff", "vanilla", "--json")
    (comparison,) = json.loads(shown.out)["comparisons"]
    assert (comparison["baseline"], comparison["candidate"]) == ("pogdiff", "vanilla")
    assert {group["group"]: group["verdict"] for group in comparison["groups"]}["few"] == "regressed"
    text = pogdiff("compare", "-C", root, "--groups", "few")
    assert "pogdiff against vanilla: tail improved (better:" in text.out
    assert "head" not in text.out


def test_runs_of_several_projects_carry_the_projects_name(pogdiff: Command, root: Path, tmp_path: Path) -> None:
    other = project(tmp_path / "pets", {"vanilla": scored(people(tails=3, heads=11), ("fid",))})
    shown = pogdiff("compare", "-C", root, "-C", other, "vanilla", "--format", "csv")
    assert {row["run"] for row in values(shown.out)} == {"faces:vanilla", "pets:vanilla"}
    named = pogdiff("compare", "-C", root, "pogdiff", f"{other}:vanilla", "--json")
    found = json.loads(named.out)
    assert {value["run"] for value in found["values"]} == {"faces:pogdiff", "pets:vanilla"}
    assert found["comparisons"] == []
    text = pogdiff("compare", "-C", root, "pogdiff", f"{other}:vanilla")
    assert "the identities, or the groups they belong to: no comparison" in " ".join(text.out.split())


def test_projects_of_one_name_are_told_apart_by_their_path(
    pogdiff: Command, root: Path, tmp_path: Path, runs: dict[str, Scores]
) -> None:
    twin = project(tmp_path / "elsewhere" / "faces", runs)
    shown = pogdiff("compare", "-C", root, "-C", twin, "vanilla", "--format", "csv")
    assert {row["run"] for row in values(shown.out)} == {f"{root}:vanilla", f"{twin}:vanilla"}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["vanila"], 4, "Did you mean 'vanilla'?"),
        (["unscored"], 4, "pogdiff evaluate --run unscored"),
        (["--metrics", "fod"], 2, "Did you mean 'fid'?"),
        (["--groups", "fev"], 2, "Did you mean 'few'?"),
        (["-o", "table.docx"], 2, ".csv, .json, .md or .tex"),
    ],
)
def test_what_cannot_be_shown_is_said_with_the_remedy(
    pogdiff: Command, root: Path, arguments: list[str], status: int, said: str
) -> None:
    ended = pogdiff("compare", "-C", root, *arguments)
    assert (ended.status, ended.out) == (status, "")
    assert said in ended.err


def test_a_metric_is_asked_for_as_in_evaluate(pogdiff: Command, root: Path) -> None:
    shown = pogdiff("compare", "-C", root, "--metrics", "recall,identity", "--groups", "few,all", "--format", "csv")
    assert {(row["metric"], row["group"]) for row in values(shown.out)} == {
        (metric, group) for metric in ("recall", "identity") for group in ("few", "all")
    }


@pytest.mark.parametrize(("suffix", "begins"), [(".csv", "source,run,"), (".md", "| group |"), (".tex", "% [low")])
def test_the_suffix_of_a_file_says_its_form(
    pogdiff: Command, root: Path, tmp_path: Path, suffix: str, begins: str
) -> None:
    path = tmp_path / f"table{suffix}"
    assert pogdiff("compare", "-C", root, "-o", path).status == 0
    assert path.read_text(encoding="utf-8").startswith(begins)


def test_the_papers_numbers_stand_apart_and_decide_nothing(pogdiff: Command, root: Path) -> None:
    rows = values(pogdiff("compare", "-C", root, "--paper", "--format", "csv").out)
    ours = [row for row in rows if row["source"] == "measured here"]
    theirs = [row for row in rows if row["source"] == "printed in the paper"]
    assert len(ours) + len(theirs) == len(rows)
    assert {row["run"] for row in ours} == {"vanilla", "pogdiff"}
    assert all("AgeDB" in r["run"] or "DigiFace" in r["run"] or "VGGFace" in r["run"] for r in theirs)
    assert all(row["note"].endswith("other data, models and extractors") for row in theirs)
    assert all((row["low"], row["high"], row["extractor"]) == ("", "", "") for row in theirs)
    found = json.loads(pogdiff("compare", "-C", root, "--paper", "--json").out)
    assert [comparison["candidate"] for comparison in found["comparisons"]] == ["pogdiff"]
    assert {value["run"] for value in found["values"]} == {"vanilla", "pogdiff"}
    assert len(found["paper"]["values"]) == len(theirs)
    for form in ("markdown", "latex"):
        text = pogdiff("compare", "-C", root, "--paper", "--format", form).out
        assert text.index("Tables 1 to 11 of the paper") > text.index("pogdiff")
        assert "Not comparable with the table above" in text


def test_later_tables_of_the_paper_repeat_the_earlier_ones() -> None:
    """Tables 5 and 7 to 11 print what Tables 1 to 4 and 6 print, with ablations and one data set more."""
    first: dict[tuple[str, ...], float] = {}
    repeated = 0
    for value in printed():
        key = (value.metric, value.data, value.group, value.method)
        repeated += key in first
        assert first.setdefault(key, value.value) == value.value, (value.table, key)
    assert len(printed()) == 2 * 32 + 2 * 24 + 32 + 24 + 2 * 40 + 3 * 32
    assert repeated == 16 + 2 * 32 + 3 * 24
    assert len(reference_values([])) == len(first)


def test_the_papers_recall_is_that_of_its_appendix() -> None:
    """Appendix E: (1/30 + 0/2)/2, (16/30 + 0/2)/2 and (18/30 + 2/2)/2."""
    recall = {v.method: v.value for v in printed() if (v.table, v.data, v.group) == (6, "AgeDB-IT2I-S", "all")}
    assert recall == pytest.approx({"vanilla": 1 / 60, "t2h": 1 / 60, "cbdm": 16 / 60, "pogdiff": 0.8}, abs=5e-4)


def test_the_papers_table_has_its_own_headings_and_digits() -> None:
    table = paper_table(["fid", "recall", "bleed"])
    assert table.header == ("data (paper)", "method (paper)", "FID few", "FID all", "Recall few", "Recall all")
    assert ("AgeDB-IT2I-L", "pogdiff", "10.16", "6.03", "0.540", "0.435") in table.rows
    assert ("DigiFace-IT2I-L", "cbdm", "12.72", "6.96", "", "") in table.rows
