"""Random damage to a finished project is detected with a clear message, mended on the way, or harmless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from corruption import TARGETS, Damage, Oracle, copied, drawn, finished, inflict, pogdiff

DEAR = {
    "run",
    "repair",
    "report",
    "resume",
    "train anew",
    "sample anew",
    "dry-run",
    "density anew",
    "rate",
}  # some seconds each


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path, tiny_vit: Path) -> Oracle:
    """The finished project, and what each command comes to in it."""
    folder = tmp_path_factory.mktemp("corruption")
    return Oracle(finished(folder / "base", tiny_sd, tiny_vit), folder / "work")


def tally(oracle: Oracle, damages: Iterable[Damage]) -> Counter[str]:
    """How each of them ended; one that did not end well fails the test and tells its seed."""
    return Counter(oracle.judge(damage) for damage in damages)


def test_forty_corruptions_are_detected_mended_or_harmless(oracle: Oracle) -> None:
    every = (drawn(oracle.base, seed) for seed in range(1000))
    cheap = [damage for damage in every if damage.command not in DEAR][:38]
    image = next(path.relative_to(oracle.base) for path in oracle.base.glob("runs/pogdiff/samples/*/00001.png"))
    dear = [
        Damage(target="samples", kind="garbage", files=(image.as_posix(),), command="run", seed=0),
        Damage(target="logs", kind="truncation", files=("runs/pogdiff/metrics.jsonl",), command="resume", seed=0),
    ]
    ended = tally(oracle, [*cheap, *dear])
    assert ended.total() == 40
    assert ended["detected"] >= 10
    assert ended["as before"] >= 5


@pytest.mark.slow
def test_a_thousand_corruptions_are_detected_mended_or_harmless(oracle: Oracle) -> None:
    damages = [drawn(oracle.base, seed) for seed in range(1000)]
    assert {damage.target for damage in damages} == set(TARGETS)
    ended = tally(oracle, damages)
    assert ended["detected"] > 200
    assert ended["as before"] > 200
    assert ended["not there"] < 100


def test_the_harness_notices_results_that_differ(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    from pogdiff_cli.stages import compare

    monkeypatch.setattr(compare, "refuse_damaged", lambda project, paths: None)  # the protection taken away
    damage = Damage(
        target="evaluation",
        kind="deletion",
        files=("runs/vanilla/evaluation/scores.json",),
        command="compare",
        seed=0,
    )
    with pytest.raises(AssertionError, match="silently different"):
        oracle.judge(damage)


def test_final_weights_in_which_a_bit_has_flipped_are_not_sampled(oracle: Oracle) -> None:
    damage = Damage(
        target="final",
        kind="bit flip",
        files=("runs/vanilla/final/pytorch_lora_weights.safetensors",),
        command="sample",
        seed=1,
    )
    assert oracle.judge(damage) == "detected"


def test_scores_in_which_a_digit_has_changed_are_not_compared(oracle: Oracle) -> None:
    root = copied(oracle.base, oracle.work)
    path = root / "runs" / "vanilla" / "evaluation" / "scores.json"
    path.write_text(path.read_text().replace('"value": 0.', '"value": 1.', 1))
    shown = pogdiff("compare", "-C", root, "vanilla", "pogdiff", "--json")
    assert shown.status == 4
    assert "runs/vanilla/evaluation/scores.json" in shown.err
    assert "pogdiff evaluate --run vanilla" in shown.err


def test_the_same_seed_does_the_same_damage(oracle: Oracle, tmp_path: Path) -> None:
    damage = drawn(oracle.base, 2)
    contents = []
    for name in ("a", "b"):
        path = tmp_path / name / damage.files[0]
        path.parent.mkdir(parents=True)
        path.write_bytes((oracle.base / damage.files[0]).read_bytes())
        inflict(tmp_path / name, damage)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] != (oracle.base / damage.files[0]).read_bytes()
