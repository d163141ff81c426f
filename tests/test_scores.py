"""From features to scores, comparison, verdict and gate, on people who are clouds around known centres."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.columns import score_columns
from pogdiff_cli.metrics.compare import Comparison, compare
from pogdiff_cli.metrics.gates import check_gates, parse_gates
from pogdiff_cli.metrics.inputs import ExtractorInfo, FeatureSet, IdentityFeatures, ScoreSettings, Shot
from pogdiff_cli.metrics.registry import METRICS, REQUESTS, computed_by
from pogdiff_cli.metrics.scores import Scores, read_scores

ALL = ("fid", "kid", "prdc", "dino", "recall", "identity", "bleed", "copy")
FACE = {"face": ExtractorInfo(name="dlib", digest="sha256:0", dim=16)}


def people(
    *, tails: int = 10, heads: int = 10, images: int = 8, tail_error: float = 0.0, seed: int = 0
) -> list[IdentityFeatures]:
    """Tails have 2 training images, heads 8. A share ``tail_error`` of a tail's shows the next person."""
    fixed, drawn = np.random.default_rng(99), np.random.default_rng(seed)
    count = tails + heads
    centres = 2 * fixed.standard_normal((count, 16))
    result = []
    for i in range(count):
        few = i < tails
        who = np.where(drawn.random(images) < (tail_error if few else 0.2), (i + 1) % count, i)
        n, m = (2, 8) if few else (8, 3)
        shot: Shot = "few" if few else "many"
        features = FeatureSet(
            train=centres[i] + 0.5 * fixed.standard_normal((n, 16)),
            heldout=centres[i] + 0.5 * fixed.standard_normal((m, 16)),
            fake=centres[who] + 0.5 * drawn.standard_normal((images, 16)),
        )
        result.append(
            IdentityFeatures(
                identity=f"p{i:02}",
                name=f"Person {i}",
                shot=shot,
                train_count=n,
                heldout_count=m,
                seeds=tuple(range(images)),
                features={"face": features},
            )
        )
    return result


def scored(
    identities: list[IdentityFeatures],
    requests: tuple[str, ...] = ALL,
    **changes: Any,
) -> Scores:
    settings = ScoreSettings(extractor_of=dict.fromkeys(requests, "face"), resamples=1000)
    return score_columns(
        identities,
        run=changes.pop("run", "run"),
        method="vanilla",
        ratings=changes.pop("ratings", {}),
        settings=dataclasses.replace(settings, **changes),
        extractors=FACE,
    )


def verdict(comparison: Comparison, group: str) -> str:
    found = comparison.group(group)
    assert found is not None
    return found.verdict


def with_fake(identity: IdentityFeatures, fake: np.ndarray) -> IdentityFeatures:
    features = dataclasses.replace(identity.features["face"], fake=fake)
    return dataclasses.replace(identity, features={"face": features})


def test_scores_survive_the_way_to_json_and_back(tmp_path: Path) -> None:
    scores = scored(people(heads=3, tails=3))
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(scores.to_json(), allow_nan=False))
    again = read_scores(path)
    assert again.to_json() == json.loads(path.read_text())
    assert again.groups == scores.groups
    assert again.per_identity == scores.per_identity


def test_every_null_number_has_a_reason() -> None:
    scores = scored(people(heads=3, tails=3), images_per_identity="all")
    for entry in scores.per_identity:
        nulls = {name for name, value in entry.metrics.items() if value is None}
        assert nulls == entry.reasons.keys()
    for group in scores.groups.values():
        assert all(value.low is not None or value.reason for value in group.metrics.values())


def test_group_means_are_means_over_identities() -> None:
    scores = scored(people(tail_error=0.5))
    few = [e.metrics["identity"] for e in scores.per_identity if e.shot == "few"]
    value = scores.groups["few"].metrics["identity"]
    assert value.value == pytest.approx(np.mean([float(v) for v in few if v is not None]))
    assert value.n == 10
    assert value.low is not None
    assert value.high is not None
    assert value.value is not None
    assert value.low < value.value < value.high
    assert scores.groups["all"].identities == 20
    assert "medium" not in scores.groups


def test_few_identities_get_the_spread_over_seeds_instead_of_an_interval() -> None:
    """For a mean over images the jackknife spread is the standard error of the mean over seeds."""
    identities = people(heads=0, tails=3, images=6)
    scores = scored(identities, ("bleed", "dino"))
    value = scores.groups["few"].metrics["bleed"]
    assert (value.low, value.high) == (None, None)
    assert value.reason is not None
    assert "fewer than 10" in value.reason
    per_seed = []
    for seed in range(6):
        one = [with_fake(i, i.features["face"].fake[seed : seed + 1]) for i in identities]
        one = [dataclasses.replace(i, seeds=(seed,)) for i in one]
        per_seed.append(scored(one, ("bleed",)).groups["few"].metrics["bleed"].value)
    spread = np.std(np.array(per_seed, dtype=float), ddof=1) / np.sqrt(6)
    assert value.seed_spread == pytest.approx(spread, rel=1e-9)


def test_equal_numbers_of_images_are_scored_by_default() -> None:
    identities = people(tails=2, heads=2)
    longer = with_fake(identities[0], np.concatenate([identities[0].features["face"].fake] * 2))
    identities[0] = dataclasses.replace(longer, seeds=tuple(range(16)))
    assert [e.generated for e in scored(identities).per_identity] == [8, 8, 8, 8]
    assert [e.generated for e in scored(identities, images_per_identity="all").per_identity] == [16, 8, 8, 8]
    assert [e.generated for e in scored(identities, images_per_identity=3).per_identity] == [3, 3, 3, 3]
    with pytest.raises(PogdiffError, match="fewer than 9"):
        scored(identities, images_per_identity=9)


def test_the_tail_may_be_scored_on_a_number_of_images_of_its_own(tmp_path: Path) -> None:
    """The paper's columns: few-shot on more images than all-shot. Each is what scoring on its number alone gives."""
    identities = people(tails=12, heads=3, images=9, tail_error=0.6)
    both = scored(identities, images_per_identity=3, few_images_per_identity=9)
    three, nine = (scored(identities, images_per_identity=n) for n in (3, 9))
    assert both.groups["all"] == three.groups["all"]
    assert both.groups["many"] == three.groups["many"]
    assert both.groups["few"] == nine.groups["few"] != three.groups["few"]
    assert both.recall_curve["few"] == nine.recall_curve["few"]
    assert both.per_identity == three.per_identity
    assert both.members("few") == nine.members("few")
    assert [both.groups[group].most_images for group in ("all", "few")] == [3, 9]
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(both.to_json()))
    assert read_scores(path) == both


def test_the_verdict_on_the_tail_is_drawn_from_the_tails_own_column() -> None:
    """The model fails from the fourth seed on: all-shot on three images shows nothing, few-shot on nine does."""
    before, after = people(tails=12, heads=3, images=9), people(tails=12, heads=3, images=9)
    strangers = [(i + 5) % 15 for i in range(15)]
    for i, identity in enumerate(before):
        fake = identity.features["face"].fake.copy()
        fake[3:] = after[strangers[i]].features["face"].fake[3:]
        before[i] = with_fake(identity, fake)
    columns = {"images_per_identity": 3, "few_images_per_identity": 9}
    result = compare(scored(before, **columns), scored(after, **columns))
    assert {group.group: group.verdict for group in result.groups} == {
        "few": "improved",
        "many": "inconclusive",
        "all": "inconclusive",
    }
    with pytest.raises(PogdiffError, match="few_images_per_identity"):
        compare(scored(before, **columns), scored(after, images_per_identity=3))


def test_too_few_images_for_the_tails_column_are_said_so() -> None:
    with pytest.raises(PogdiffError, match="10 identities have fewer than 9 generated images"):
        scored(people(), images_per_identity=3, few_images_per_identity=9)


@pytest.mark.parametrize(("no_face", "expected"), [("wrong", 0.5), ("excluded", 1.0)])
def test_images_without_a_face_are_counted_and_are_not_the_right_person(no_face: str, expected: float) -> None:
    identities = people(tails=2, heads=0)
    fake = identities[0].features["face"].fake.copy()
    fake[:4] = np.nan
    scores = scored([with_fake(identities[0], fake), identities[1]], no_face=no_face)
    entry = scores.per_identity[0]
    assert entry.missing["face"].generated == 4
    assert entry.metrics["identity"] == expected


def test_a_run_that_never_shows_a_face_is_never_right() -> None:
    identities = people(tails=2, heads=0)
    nobody = with_fake(identities[0], np.full((8, 16), np.nan))
    entry = scored([nobody, identities[1]]).per_identity[0]
    assert (entry.metrics["identity"], entry.metrics["recall"], entry.metrics["fid"]) == (0.0, 0.0, None)
    assert entry.reasons["fid"] == "no face found in any generated image"


def test_without_heldout_images_the_exact_true_set_still_scores() -> None:
    identities = people(tails=2, heads=0)
    bare = dataclasses.replace(identities[0].features["face"], heldout=np.zeros((0, 16)))
    identities[0] = dataclasses.replace(identities[0], features={"face": bare}, heldout_count=0)
    held, exact = scored(identities), scored(identities, true_set="exact")
    assert held.per_identity[0].metrics["fid"] is None
    assert held.per_identity[0].reasons["fid"] == "no held-out image"
    assert held.groups["few"].metrics["fid"].n == 1
    assert exact.per_identity[0].metrics["fid"] is not None


def test_recall_curve_ends_at_the_recall_itself() -> None:
    scores = scored(people(tail_error=0.3), recall_threshold=0.85)
    n, share = scores.recall_curve["few"][-1]
    assert n == 8
    assert share == pytest.approx(scores.groups["few"].metrics["recall"].value)


def test_ratings_join_the_metrics_of_features() -> None:
    scores = scored(people(tails=2, heads=0), ("fid",), ratings={"human": {"p00": 4.5}})
    assert scores.groups["few"].metrics["human"].value == 4.5
    assert scores.per_identity[1].reasons["human"] == "not rated"


def test_seeds_must_match_the_rows() -> None:
    identities = people(tails=2, heads=0)
    with pytest.raises(PogdiffError, match="8 seeds but 7") as caught:
        scored([with_fake(identities[0], identities[0].features["face"].fake[:7]), identities[1]])
    assert caught.value.exit_code is Exit.DATA


def test_an_unknown_metric_is_refused_with_its_neighbour() -> None:
    with pytest.raises(PogdiffError) as caught:
        computed_by(["identiti"])
    assert caught.value.hint is not None
    assert "'identity'" in caught.value.hint


def test_every_request_computes_registered_metrics_only() -> None:
    assert {name for names in REQUESTS.values() for name in names} <= METRICS.keys()


def test_a_run_against_itself_is_inconclusive_everywhere() -> None:
    scores = scored(people(tail_error=0.5))
    result = compare(scores, scores)
    assert {group.verdict for group in result.groups} == {"inconclusive"}
    assert all(d.improvement == 0 for group in result.groups for d in group.differences if d.n)


def test_the_same_method_under_other_seeds_is_nearly_always_inconclusive() -> None:
    requests = ("fid", "dino", "recall", "identity")
    runs = [scored(people(tail_error=0.5, seed=seed), requests) for seed in range(40)]
    outcomes = [
        all(group.verdict == "inconclusive" for group in compare(a, b).groups)
        for a, b in zip(runs[::2], runs[1::2], strict=True)
    ]
    assert np.mean(outcomes) >= 0.9


def test_a_planted_improvement_of_the_tail_is_found_and_the_head_left_alone() -> None:
    before = scored(people(tail_error=0.7, seed=1), run="vanilla")
    after = scored(people(tail_error=0.1, seed=2), run="pogdiff")
    result = compare(before, after)
    assert verdict(result, "few") == "improved"
    assert verdict(result, "many") == "inconclusive"
    tail = result.group("few")
    assert tail is not None
    assert tail.headline == "tail improved"
    fid = next(d for d in tail.differences if d.metric == "fid")
    assert fid.baseline is not None
    assert fid.candidate is not None
    assert fid.improvement == pytest.approx(fid.baseline - fid.candidate)
    assert verdict(compare(after, before), "few") == "regressed"
    assert [group.group for group in result.groups] == ["few", "many", "all"]
    json.dumps(result.to_json(), allow_nan=False)


def test_even_a_large_change_of_few_identities_is_inconclusive_and_says_why() -> None:
    before, after = scored(people(tails=6, tail_error=1.0)), scored(people(tails=6, tail_error=0.0))
    tail = compare(before, after).group("few")
    assert tail is not None
    assert tail.verdict == "inconclusive"
    assert "6 identities, fewer than 10" in tail.reason
    identity = next(d for d in tail.differences if d.metric == "identity")
    assert len(identity.per_identity) == 6
    assert identity.improvement is not None
    assert identity.improvement > 0.5


def test_a_collapsed_model_that_wins_on_distance_is_cautioned() -> None:
    """FID better while recall is worse: planted in the scores themselves."""
    before = scored(people(), ("fid", "recall"))
    entries = [
        dataclasses.replace(e, metrics={**e.metrics, "fid": e.metrics["fid"] - 1.0 - i / 100, "recall": -0.5})  # type: ignore[operator]
        for i, e in enumerate(before.per_identity)
    ]
    result = compare(before, dataclasses.replace(before, per_identity=tuple(entries)))
    assert verdict(result, "few") == "inconclusive"
    assert any("FID improved while recall" in caution for caution in result.cautions)


@pytest.mark.parametrize("change", [{"true_set": "exact"}, {"images_per_identity": 4}])
def test_scores_under_different_settings_are_not_compared(change: dict[str, Any]) -> None:
    with pytest.raises(PogdiffError, match="no comparison"):
        compare(scored(people()), scored(people(), **change))


def test_scores_of_another_schema_are_refused() -> None:
    with pytest.raises(PogdiffError) as caught:
        Scores.from_json({"schema": "pogdiff.scores/0"})
    assert caught.value.exit_code is Exit.MISSING
    with pytest.raises(PogdiffError, match="damaged"):
        Scores.from_json({"schema": "pogdiff.scores/1"})


def test_gates_hold_or_fail_on_values_improvements_and_verdicts() -> None:
    before = scored(people(tail_error=0.7, seed=1))
    after = scored(people(tail_error=0.1, seed=2))
    gates: dict[str, str | float] = {
        "few.identity": ">= 0.5",
        "few.identity.low": "< 0",
        "few.fid.improvement": "> 0",
        "few.fid": 1e9,
        "few.verdict": "improved",
        "many.verdict": "not regressed",
        "few.recall.p": "<= 1",
        "medium.fid": "< 5",
    }
    results = check_gates(gates, scores=after, comparison=compare(before, after))
    assert [r.passed for r in results] == [True, False, True, True, True, True, True, False]
    assert results[-1].reason == "no identity belongs to 'medium'"


def test_a_gate_without_its_number_fails_with_the_reason() -> None:
    scores = scored(people(), ("fid",))
    results = check_gates({"few.fid.improvement": "> 0", "few.recall": "> 0"}, scores=scores)
    assert [(r.passed, r.reason) for r in results] == [
        (False, "no baseline was given"),
        (False, "not computed"),
    ]


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("fewer.fid", "> 0"),
        ("few.fod", "> 0"),
        ("few", "> 0"),
        ("few.fid.medial", "> 0"),
        ("few.fid.low.low", "> 0"),
        ("few.fid", "about 3"),
        ("few.fid", "> 1.2.3"),
        ("few.fid", True),
        ("few.verdict", "better"),
        ("few.verdict", "not"),
    ],
)
def test_a_gate_that_cannot_be_read_is_a_usage_error(name: str, bound: str | float) -> None:
    with pytest.raises(PogdiffError) as caught:
        parse_gates({name: bound})
    assert caught.value.exit_code is Exit.USAGE
    assert caught.value.hint
