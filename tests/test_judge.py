"""What an answer says, what a log keeps, what a score is, and who is asked."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.answers import Reading, read_score
from pogdiff_cli.metrics.compare import compare
from pogdiff_cli.metrics.inputs import IdentityFeatures, ScoreSettings, Shot
from pogdiff_cli.metrics.judge_log import Entry, key_of, read_log
from pogdiff_cli.metrics.judged import Judged, JudgedImage
from pogdiff_cli.metrics.scores import Scores
from pogdiff_cli.metrics.scoring import score
from pogdiff_cli.models.access import Access
from pogdiff_cli.models.judges import Judge, Question, load_judge
from pogdiff_cli.models.judges.prompts import PAPER, REFERENCE, prompt_for
from pogdiff_cli.project.line_log import LineWriter

SERVER = Access(base_url="http://127.0.0.1:9/v1", timeout=1.0, retries=0)
OURS = replace(SERVER, allow_python=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"score": 7.5}', 7.5),
        ('```json\n{"score": 3}\n```', 3),
        ('{"score": "8"}', 8),
        ('Here you are: {"score": 0, "why": "no"} .', 0),
        ("7", 7),
        ("10.0", 10),
        ("**6.5**", 6.5),
        ("7,5", 7.5),
        ("0/10", 0),
        ("9 out of 10.", 9),
        ("I would say 4/10, since the nose differs in 2 ways.", 4),
        ("On a scale from 0 to 10, I'd rate it 7.", 7),
        ("On a scale of 0-10 I'd give 7.5/10.0.", 7.5),
        ("Score: 2", 2),
        ("My rating is **3.0**. They share 1 of 5 features.", 3),
        ("The score is 5. So: 5/10", 5),
        ("I'm sorry to say, but 0/10.", 0),
    ],
)
def test_the_one_score_of_an_answer_is_read(text: str, value: float) -> None:
    assert read_score(text) == Reading(outcome="score", score=value)


@pytest.mark.parametrize(
    "text",
    [
        "11/10",
        "-1",
        "\u22121",
        "10.01",
        '{"score": 11}',
        '{"score": -0.5}',
        "Score: 85",
        "-3/10",
        '{"score": 1e400}',
        "100",
    ],
)
def test_a_number_beyond_the_scale_is_out_of_range_and_not_clipped(text: str) -> None:
    assert read_score(text) == Reading(outcome="out_of_range")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "They look alike.",
        "seven",
        '{"score": 7',
        '{"score": true}',
        '{"score": null}',
        '{"score": NaN}',
        '{"score": [7]}',
        '{"rating": 7}',
        '{"score": "7 or 8"}',
        "7-8",
        "7 to 8 out of 10",
        "7\u20138/10",
        "4/10 for the eyes, 6/10 for the mouth",
        "8/100",
        "80%",
        "Score: 70%",
        "I count 3 people in 2 pictures.",
        "{" * 100_000,
    ],
)
def test_an_answer_without_one_score_is_unparsable(text: str) -> None:
    assert read_score(text) == Reading(outcome="unparsable")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I can\u2019t identify people in images.",
        "I cannot compare the individuals in these 2 images.",
        "I am not able to determine who this is.",
        "I won't rate real people.",
    ],
)
def test_a_refusal_in_words_is_one(text: str) -> None:
    assert read_score(text) == Reading(outcome="refused")


def test_a_refusal_by_field_outweighs_any_text() -> None:
    assert read_score("7", refusal="content_filter") == Reading(outcome="refused")


@given(st.text(max_size=200))
def test_any_text_is_read_as_something_and_a_score_lies_on_the_scale(text: str) -> None:
    reading = read_score(text)
    assert (reading.outcome == "score") == (reading.score is not None)
    assert reading.score is None or 0 <= reading.score <= 10


@given(st.decimals(min_value=-30, max_value=30, places=2, allow_nan=False))
def test_a_bare_number_is_itself_or_out_of_range(number: object) -> None:
    value = float(str(number))
    for text in (str(number), f"{number}/10", json.dumps({"score": value})):
        reading = read_score(text)
        assert reading == (
            Reading(outcome="score", score=value) if 0 <= value <= 10 else Reading(outcome="out_of_range")
        )


def test_the_papers_prompt_names_the_real_person_and_changes_nothing_else() -> None:
    before, after = PAPER.split("p-true")
    assert prompt_for("paper", "Albert Einstein") == f"{before}Albert Einstein{after}"
    assert PAPER.startswith("It is mandatory to give a score that how close the person in the image to a well-known ")
    assert prompt_for("reference", "Albert Einstein") == REFERENCE
    assert "Einstein" not in REFERENCE


def entry(number: int, answer: str = "7") -> Entry:
    return Entry(
        key=key_of(image="sha256:a", reference=None, repeat=number, model="openai:x", prompt="sha256:p"),
        image="sha256:a",
        reference=None,
        repeat=number,
        model="openai:x",
        prompt="sha256:p",
        answer=answer,
        refusal=None,
        served_by="x-1",
        prompt_tokens=1,
        completion_tokens=None,
        time="2026-01-01T00:00:00+00:00",
    )


def test_every_part_of_a_question_is_part_of_its_key() -> None:
    one = {"image": "a", "reference": "b", "repeat": 0, "model": "m", "prompt": "p"}
    keys = {key_of(**one)}  # type: ignore[arg-type]
    for part, other in (("image", "z"), ("reference", None), ("repeat", 1), ("model", "z"), ("prompt", "z")):
        keys.add(key_of(**{**one, part: other}))  # type: ignore[arg-type]
    assert len(keys) == 6


def test_a_log_keeps_what_was_said_first(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "judge.jsonl"
    assert read_log(path) == {}
    with LineWriter(path) as log:
        log.append(entry(0, 'é\u2028"\n\ud800'))
        log.append(entry(1))
    with LineWriter(path) as log:
        log.append(entry(1, "8"))
    found = read_log(path)
    assert [found[entry(n).key].answer for n in (0, 1)] == ['é\u2028"\n\ud800', "7"]


def test_a_line_torn_at_any_byte_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    with LineWriter(path) as log:
        log.append(entry(0))
        log.append(entry(1))
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert set(read_log(path)) == {entry(0).key}
        with LineWriter(path) as log:
            log.append(entry(1))
        assert path.read_bytes() == whole


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "judge.jsonl"
    with LineWriter(path) as log:
        log.append(entry(0))
        with monkeypatch.context() as disk:
            disk.setattr("os.fsync", full)
            with pytest.raises(OSError, match="full"):
                log.append(entry(1))
        log.append(entry(2))
    assert set(read_log(path)) == {entry(0).key, entry(2).key}


@pytest.mark.parametrize("bad", [b"{", b"[]", b"7", b"{}", b"\xff", b'{"key": 1}', b"[" * 100_000])
def test_a_bad_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "judge.jsonl"
    with LineWriter(path) as log:
        log.append(entry(0))
    good = path.read_bytes()
    path.write_bytes(good + bad + b"\n" + good)
    with pytest.raises(PogdiffError, match=r"judge\.jsonl:2") as caught:
        read_log(path)
    assert caught.value.exit_code == Exit.DATA


def image(identity: str, seed: int, *answers: str) -> JudgedImage:
    return JudgedImage(identity=identity, seed=seed, readings=tuple(read_score(answer) for answer in answers))


def judged(*images: JudgedImage, model: str = "openai:x") -> Judged:
    return Judged(label="x, reference", method={"model": model}, images=images, unasked={"gone": "no real image"})


def test_a_score_is_the_mean_over_images_of_the_mean_over_answers() -> None:
    found = judged(image("a", 0, "2", "4", "6"), image("a", 1, "10", "no", "11"), image("b", 0, "-1", "I can't help"))
    values = found.values()
    assert values["judge"] == {"a": pytest.approx((4 + 10) / 2)}
    assert values["judge_answered"] == {"a": pytest.approx(4 / 6), "b": 0}
    assert values["judge_spread"] == {"a": pytest.approx(np.std([2, 4, 6], ddof=1))}
    assert found.reason("b") == "no answer is a score: 1 out of range, 1 refused"
    assert found.reason("gone") == "no real image"


def test_answers_that_are_no_score_are_counted_and_never_imputed() -> None:
    found = judged(image("a", 0, "2", "x", "11"), image("b", 0, "I can't help", "4", "4"))
    counts = found.companions({"all": ["a", "b"], "few": ["b"]})["groups"]
    assert counts["all"] == {
        "images": 2,
        "answers": 6,
        "score": 3,
        "refused": 1,
        "unparsable": 1,
        "out_of_range": 1,
    }
    assert counts["few"] == {"images": 1, "answers": 3, "score": 2, "refused": 1, "unparsable": 0, "out_of_range": 0}


def test_the_spread_over_seeds_is_the_standard_error_of_a_mean_over_seeds() -> None:
    """With as many folds as seeds the jackknife of a mean is sd / sqrt(n)."""
    values = [1.0, 4.0, 6.0, 9.0]
    found = judged(*(image("a", seed, str(value)) for seed, value in enumerate(values)))
    assert found.seed_spread(["a"]) == pytest.approx(np.std(values, ddof=1) / 2)
    assert judged(image("a", 0, "3")).seed_spread(["a"]) is None


def person(number: int, shot: Shot) -> IdentityFeatures:
    return IdentityFeatures(
        identity=f"p{number}",
        name=f"Person {number}",
        shot=shot,
        train_count=2 if shot == "few" else 30,
        heldout_count=0,
        seeds=(0, 1),
        features={},
    )


def scores(offset: float, *, few: int = 12, many: int = 12, model: str = "openai:x", run: str = "run") -> Scores:
    people = [person(n, "few" if n < few else "many") for n in range(few + many)]
    answers = [
        image(p.identity, seed, f"{3 + n % 3 + (offset if p.shot == 'few' else 0):.2f}", f"{4 + n % 3:.2f}")
        for n, p in enumerate(people)
        for seed in p.seeds
    ]
    return score(
        people,
        run=run,
        method="vanilla",
        settings=ScoreSettings(extractor_of={}, resamples=500),
        extractors={},
        judged=judged(*answers, model=model),
    )


def test_the_judge_needs_no_features_and_has_intervals_by_group() -> None:
    found = scores(0.0)
    value = found.groups["few"].metrics["judge"]
    expected = np.mean([(3 + n % 3 + 4 + n % 3) / 2 for n in range(12)])
    assert value.value == pytest.approx(expected)
    assert value.low is not None
    assert value.high is not None
    assert value.low < expected < value.high
    assert value.n == 12
    assert found.metrics["judge"].label == "Judge (x, reference)"
    assert found.judge["groups"]["few"]["answers"] == 48
    assert Scores.from_json(json.loads(json.dumps(found.to_json()))).judge == found.judge


def test_few_identities_have_their_spread_over_seeds_instead() -> None:
    value = scores(0.0, few=3, many=0).groups["few"].metrics["judge"]
    assert value.low is None
    assert value.seed_spread == pytest.approx(0.0)  # both seeds of each were answered alike


def test_scores_that_were_written_before_there_was_a_judge_can_be_read() -> None:
    body = json.loads(json.dumps(scores(0.0).to_json()))
    del body["judge"]
    assert Scores.from_json(body).judge == {}


def test_a_judge_decides_a_verdict_and_another_judge_is_not_compared_with_it() -> None:
    first, second = scores(0.0, run="vanilla"), scores(3.0, run="pogdiff")
    verdicts = {group.group: group.verdict for group in compare(first, second, seed=0, resamples=500).groups}
    assert (verdicts["few"], verdicts["many"]) == ("improved", "inconclusive")
    with pytest.raises(PogdiffError, match="the judge, or what it was asked"):
        compare(first, scores(3.0, model="openai:y"), seed=0, resamples=500)
    assert not compare(first, second, seed=0, resamples=500).cautions
    groups = {"all": {"answers": 100, "score": 90}}
    refused = dataclasses.replace(second, judge={**second.judge, "groups": groups})
    (caution,) = compare(first, refused, seed=0, resamples=500).cautions
    assert caution == "pogdiff: 10 of the judge's 100 answers are no score."
    unjudged = dataclasses.replace(second, judge={})
    assert compare(first, unjudged, seed=0, resamples=500).groups


def picture(colour: str = "black") -> bytes:
    file = BytesIO()
    Image.new("RGB", (7, 5), colour).save(file, format="PNG")
    return file.getvalue()


def test_a_judge_of_ones_own_runs_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_judge.py").write_text(
        "def width(prompt, images):\n    return images[0].width\n"
        "def echo(prompt, images):\n    return f'{prompt}: {len(images)}'\n"
        "def wrong(prompt, images):\n    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    question = Question(prompt="how many", pictures=(picture(), picture()), repeat=0)
    with pytest.raises(PogdiffError, match="would run Python code"):
        load_judge("py:my_judge:width", SERVER)
    judges = [load_judge(f"py:my_judge:{name}", OURS) for name in ("width", "echo")]
    answers = [judge.ask(question).text for judge in judges]
    assert answers == ["7", "how many: 2"]
    with pytest.raises(PogdiffError, match="must return the answer"):
        load_judge("py:my_judge:wrong", OURS).ask(question)


@pytest.mark.parametrize("spec", ["gpt-4o", "openai:", "hf:", "anthropic:x"])
def test_an_unknown_judge_is_refused_with_what_there_is(spec: str) -> None:
    with pytest.raises(PogdiffError, match="openai:MODEL") as caught:
        load_judge(spec, OURS)
    assert caught.value.exit_code == Exit.USAGE


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_vlm import save_vlm

    return save_vlm(tmp_path_factory.mktemp("models") / "vlm")


def local(folder: Path, **options: float) -> Judge:
    return load_judge(f"hf:{folder}", replace(SERVER, options=options))


def test_a_local_judge_draws_each_repeat_with_a_seed_of_its_own(vlm: Path) -> None:
    judge = local(vlm, max_new_tokens=12)
    asked = [Question(prompt="answer", pictures=(picture("red"),), repeat=n) for n in range(4)]
    answers = [judge.ask(question) for question in asked]
    assert [judge.ask(question) for question in asked] == answers
    assert len({answer.text for answer in answers}) > 1
    assert all(answer.completion_tokens and answer.completion_tokens <= 12 for answer in answers)
    certain = local(vlm, temperature=0, max_new_tokens=12)
    assert len({certain.ask(question).text for question in asked}) == 1


def test_a_local_judge_is_shown_every_picture(vlm: Path) -> None:
    """32x32 pictures are 4 patches: each further picture adds 4 tokens, and another picture other likelihoods."""
    judge = local(vlm, max_new_tokens=12)
    one, two = (
        judge.ask(Question(prompt="answer", pictures=(picture("red"),) * n, repeat=0)).prompt_tokens for n in (1, 2)
    )
    assert (one, two) == (4 + 2, 8 + 2)
    colours = ("red", "white", "black", "blue", "yellow", "green")
    answers = {judge.ask(Question(prompt="answer", pictures=(picture(c),), repeat=1)).text for c in colours}
    assert len(answers) > 1


def test_a_local_judge_takes_neither_pickles_nor_code(vlm: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder, canary = tmp_path / "vlm", tmp_path / "canary"
    shutil.copytree(vlm, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageTextToText": "own.Own", "AutoConfig": "own.Own"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w')\nclass Own: pass\n")
    assert local(folder).name == f"hf:{folder}"
    assert not canary.exists()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(PogdiffError, match="cannot be loaded") as caught:
        local(folder)
    assert caught.value.exit_code == Exit.MISSING


def test_a_local_judge_that_is_not_there_or_not_whole_is_refused(vlm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(PogdiffError, match="hf download some/judge --revision v2") as caught:
        load_judge("hf:some/judge@v2", SERVER)
    assert caught.value.exit_code == Exit.MISSING
    with pytest.raises(PogdiffError, match="no option 'top_k'"):
        local(vlm, top_k=3)
    folder = tmp_path / "vlm"
    shutil.copytree(vlm, folder)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "q_proj" in name)
    save_file({name: w for name, w in weights.items() if name != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PogdiffError, match="no trained weights for"):
        local(folder)
