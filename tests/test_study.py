"""The study's statistics, its grid and its files. Running it is nobody's test: it takes hours."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.study import grid, page, runs
from benchmarks.study.differences import difference, interval


@pytest.mark.parametrize("spread", [(1.0, 0.0, 1.0), (1.0, 0.5, 1.0), (0.3, 0.3, 1.0), (0.2, 1.0, 0.3)])
def test_an_interval_over_identities_and_seeds_covers_the_truth_as_often_as_it_says(
    spread: tuple[float, float, float],
) -> None:
    draw = np.random.default_rng(1)
    identities, seeds, noise = spread
    covered = 0
    for _ in range(2000):
        d = (
            identities * draw.standard_normal((10, 1))
            + seeds * draw.standard_normal((1, 5))
            + noise * draw.standard_normal((10, 5))
        )
        low, high = interval(d)
        covered += low <= 0 <= high
    assert 0.93 < covered / 2000 < 0.975


def test_with_no_variation_among_identities_but_seeds_the_interval_is_that_of_the_seeds() -> None:
    seeds = np.array([0.1, 0.4, 0.2, 0.6, 0.3])
    low, high = interval(np.tile(seeds, (10, 1)))
    half = 2.776445 * seeds.std(ddof=1) / np.sqrt(5)  # Student, 4 degrees of freedom
    assert (low, high) == pytest.approx((seeds.mean() - half, seeds.mean() + half), abs=2e-6)


def _result(seed: int, values: dict[str, float | None], **more: Any) -> dict[str, Any]:
    people = [
        {"who": who, "shot": "few", "fid": value, "similarity": value, "recall": value, "identity": value}
        for who, value in values.items()
    ]
    return {"condition": "any", "seed": seed, "identities": people, **more}


def test_a_difference_is_paired_by_identity_and_seed_and_less_fid_is_better() -> None:
    baseline = [_result(0, {"a": 1.0, "b": 2.0, "c": None}), _result(1, {"a": 1.5, "b": 2.5, "c": 1.0})]
    candidate = [_result(1, {"a": 1.0, "b": 2.0, "c": 1.0}), _result(0, {"a": 0.5, "b": 1.5, "c": 1.0})]
    candidate.append(_result(2, {"a": 9.0, "b": 9.0, "c": 9.0}))
    found = difference(baseline, candidate, "fid", "few")
    assert (found["mean"], found["seeds"], found["identities"]) == (0.5, 2, 2)
    assert difference(baseline, candidate, "similarity", "few")["mean"] == -0.5


def test_every_condition_of_a_seed_comes_before_the_next_seed() -> None:
    made = list(grid.jobs("own-captions", "final", grid.CONDITIONS, 2))
    assert [job.seed for job in made] == [0] * len(grid.CONDITIONS) + [1] * len(grid.CONDITIONS)
    assert len({job.key for job in made}) == len(made)
    assert all(job.settings["seed"] == job.seed for job in made)


def test_a_job_is_done_only_with_the_same_settings(tmp_path: Path) -> None:
    job = next(grid.jobs("own-captions", "final", grid.CONDITIONS, 1))
    assert not runs.is_filed(job, tmp_path)
    line = {"condition": job.condition, "seed": job.seed, "settings": dict(job.settings)}
    runs.file_of(job, tmp_path).write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert runs.is_filed(job, tmp_path)
    line["settings"]["train.max_train_steps"] = 7
    runs.file_of(job, tmp_path).write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert not runs.is_filed(job, tmp_path)


def test_in_the_split_for_choices_heads_and_tails_change_places(tmp_path: Path) -> None:
    records = [
        {"file_name": f"{who}/{number}.png", "identity": who, "split": "train" if number < many else "heldout"}
        for who, many in (("head", 8), ("tail", 2))
        for number in range(10)
    ]
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    runs.change_places(path)
    changed = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = Counter((record["identity"], record["split"]) for record in changed)
    assert counts == {
        ("head", "train"): 2,
        ("head", "heldout"): 8,
        ("tail", "train"): 8,
        ("tail", "heldout"): 2,
    }
    assert [record["file_name"] for record in changed] == [record["file_name"] for record in records]


def test_the_page_has_every_condition_and_the_differences_of_the_last_filing_of_a_job(tmp_path: Path) -> None:
    people = {"a": 0.5, "b": 0.6, "c": 0.7}
    lines = [_result(seed, people) for seed in range(2)]
    vanilla = [{**line, "condition": "vanilla"} for line in lines]
    better = [_result(seed, {who: value + 0.1 for who, value in people.items()}) for seed in range(2)]
    filed = [{**_result(0, people), "condition": "pogdiff"}, *({**line, "condition": "pogdiff"} for line in better)]
    for line in (*vanilla, *filed):
        line["identities"] += [{**each, "shot": "many"} for each in line["identities"]]
        for each in line["identities"]:
            each |= {"mean_gap_unbiased": 0.1, "bleed": 0.01, "copy": 0.0}
    source = tmp_path / "study"
    source.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in (*vanilla, *filed))
    (source / "own-captions-final.jsonl").write_text(text, encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    page.write(tmp_path, source)
    content = json.loads((tmp_path / "faces.json").read_text(encoding="utf-8"))
    found = content["few"]["vanilla"]
    assert found["recall"]["mean"] == pytest.approx(0.1)
    assert found["fid"]["mean"] == pytest.approx(-0.1)
    assert (found["recall"]["low"], found["recall"]["high"]) == pytest.approx((0.1, 0.1))
    assert found["identity_accuracy"]["seeds"] == 2
    made = readme.read_text(encoding="utf-8")
    assert made.startswith("before\n")
    assert made.endswith("after\n")
    assert "old" not in made
    assert "| few | vanilla | 2 | -0.100 (-0.100 to -0.100) | +0.100 (+0.100 to +0.100) |" in made
