"""Scoring a run whose images are embedded already takes seconds, not minutes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scoring
from pogdiff_cli.metrics.scores import read_scores


def test_twenty_identities_are_scored_by_every_metric_within_a_tenth_of_the_time_of_two_hundred(tmp_path: Path) -> None:
    """20 seconds are allowed for 200 identities of 100 images: 2 of them for 20. Everything but embedding is timed."""
    project = scoring.make_project(tmp_path / "project", identities=20, images=100)
    scoring.scored_in(project)
    started = time.process_time()  # of this process: other work on the machine does not count
    scoring.scored_in(project)
    assert time.process_time() - started < 2.0
    scores = read_scores(project / "runs/run/evaluation/scores.json")
    assert (scores.groups["all"].identities, scores.groups["few"].most_images) == (20, 100)
    assert {"fid", "kid", "coverage", "similarity", "recall", "identity", "bleed", "copy"} <= scores.metrics.keys()
    identity = scores.groups["all"].metrics["identity"].value
    assert identity == pytest.approx(1.0, abs=0.05)  # patterns that far apart are told apart


def test_the_benchmark_writes_what_it_measured_and_whether_that_suffices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = scoring.main(["--identities", "3", "--images", "8", "--rounds", "2", "--results", str(tmp_path)])
    found = json.loads((tmp_path / "scoring.json").read_text())
    (figure,) = found["figures"]
    assert status == 0
    assert len(figure["pairs"]) == 2
    assert figure["median"] == pytest.approx(np.median(figure["pairs"]), abs=1e-4)
    assert (figure["target"], figure["met"]) == ("at most 20", True)
    assert "3 identities x 8 images" in capsys.readouterr().out
