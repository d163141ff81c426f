"""``pogdiff evaluate --metrics judge``: what it asks, what it pays, what it keeps, and what it never writes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from chat_server import ChatServer, Reply, Request, fails, says, serving
from conftest import COUNTS, TinyProject
from PIL import Image

KEY = "sk-very-secret-0123456789"
EVALUATE = ("evaluate", "--metrics", "judge")
IDENTITIES, IMAGES, REPEATS = 4, 2, 3
ALL = IDENTITIES * IMAGES * REPEATS


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def sampled(project: TinyProject) -> TinyProject:
    """A project with a trained run and two images of each of four identities."""
    for arguments in (("train", "--set", "train.method=vanilla"), ("sample",)):
        done = project(*arguments)
        assert done.status == 0, done.err
    return project


def judged_by(project: TinyProject, server: ChatServer, *settings: str) -> TinyProject:
    return project.configure(
        "evaluate.judge.model=openai:seer",
        f"evaluate.judge.base_url={server.url}",
        f"evaluate.judge.repeats={REPEATS}",
        *settings,
    )


def evaluation(project: TinyProject) -> Path:
    return project.root / "runs" / "vanilla" / "evaluation"


def scores_of(project: TinyProject) -> dict:
    return json.loads((evaluation(project) / "scores.json").read_text())


def log_of(project: TinyProject) -> list[dict]:
    lines = (evaluation(project) / "judge.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def holds(root: Path, secret: str) -> list[str]:
    """Files under a folder that hold a text."""
    return [str(path) for path in root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def questions(server: ChatServer) -> Counter[str]:
    """How often each pair of pictures with its prompt was asked about."""
    return Counter(json.dumps(request.body["messages"], sort_keys=True) for request in server.requests)


def test_a_run_is_judged_once_and_its_answers_stay(sampled: TinyProject) -> None:
    with serving(lambda request: says(json.dumps({"score": request.number % 3 + 4}))) as server:
        project = judged_by(sampled, server)
        planned = project(*EVALUATE, "--dry-run", "--json")
        assert json.loads(planned.out)["stages"][-1]["facts"] == {"judge_requests": ALL, "judge_answered": 0}
        assert server.requests == []
        first = project(*EVALUATE)
        assert first.status == 0, first.err
        assert f"{ALL} requests to make, 0 answers in the log" in first.err
        assert len(server.requests) == ALL
        # the same again is up to date; forced, it asks nothing; with more repeats it asks for those alone
        assert "up to date" in project(*EVALUATE).out
        assert project(*EVALUATE, "--force").status == 0
        assert len(server.requests) == ALL
        more = project.configure("evaluate.judge.repeats=4")
        assert f"{ALL // 3} requests to make, {ALL} answers" in more(*EVALUATE, "--dry-run").out
        assert more(*EVALUATE).status == 0
        assert len(server.requests) == ALL * 4 // 3
        # another model, and another protocol, are other questions
        assert f"{ALL} requests" in project.configure("evaluate.judge.model=openai:other")(*EVALUATE, "--dry-run").out
        assert f"{ALL} requests" in project.configure("evaluate.judge.protocol=paper")(*EVALUATE, "--dry-run").out
        # where and how quickly one asks is none
        assert "up to date" in more.configure("evaluate.judge.timeout=9", "evaluate.judge.concurrency=1")(*EVALUATE).out
    counts = scores_of(project)["judge"]["groups"]["all"]
    assert counts == {
        "images": 8,
        "answers": 32,
        "score": 32,
        "refused": 0,
        "unparsable": 0,
        "out_of_range": 0,
    }
    answers = [json.loads(line["answer"])["score"] for line in log_of(project)]
    assert scores_of(project)["groups"]["all"]["metrics"]["judge"]["value"] == pytest.approx(np.mean(answers))
    assert {line["served_by"] for line in log_of(project)} == {"scripted-1"}


def test_the_reference_protocol_shows_a_real_and_the_generated_picture_and_no_name(sampled: TinyProject) -> None:
    with serving(lambda request: says('{"score": 5}')) as server:
        assert judged_by(sampled, server)(*EVALUATE).status == 0
    names = [path.name for path in (sampled.root / "runs/vanilla/samples").iterdir() if path.is_dir()]
    assert len(names) == IDENTITIES
    for request in server.requests:
        assert len(request.pictures) == 2
        real, generated = (Image.open(BytesIO(data)) for data in request.pictures)
        assert (real.size, generated.size) == ((40, 36), (32, 32))
        assert not any(name in json.dumps(request.body) for name in ("Ada", "Turing", "Grace", "Katherine"))
    assert set(questions(server).values()) == {REPEATS}


def test_the_papers_protocol_shows_one_picture_and_names_the_person(sampled: TinyProject) -> None:
    with serving(lambda request: says("8.0")) as server:
        done = judged_by(sampled, server, "evaluate.judge.protocol=paper", "evaluate.judge.repeats=1")(*EVALUATE)
        assert done.status == 0, done.err
    texts = Counter(request.text for request in server.requests)
    assert set(texts.values()) == {IMAGES}
    assert {text.rpartition(" is to ")[2] for text in texts} == {f"\u2018{name}\u2019." for name in COUNTS}
    assert {len(request.pictures) for request in server.requests} == {1}


def awkward(request: Request) -> Reply:
    """Every kind of trouble, by the number of the request; what is asked again is answered in the end."""
    answers = ("11/10", '{"score": 7', "They look alike.", "I'm sorry, I can't help with that.", '{"score": 6}')
    trouble = {
        0: fails(429, "slow down", headers={"Retry-After": "0"}),
        3: fails(500, f"oops {KEY}"),
        5: says("late", hang=1.5),
        8: Reply(body=b"<html>"),
        11: says('{"score": 1}', close=True),
    }
    return trouble.get(request.number) or says(f"{answers[request.number % 5]}" + f" {KEY}" * (request.number == 13))


def test_what_is_no_score_is_counted_and_no_secret_is_written(sampled: TinyProject) -> None:
    with serving(awkward) as server:
        project = judged_by(sampled, server, "evaluate.judge.timeout=1", "evaluate.judge.concurrency=3")
        done = project(*EVALUATE)
        assert done.status == 0, done.err
        assert len(server.requests) == ALL + 5
        assert server.busiest <= 4  # three, and the one that hung and was left
    counts = scores_of(project)["judge"]["groups"]["all"]
    assert counts["answers"] == len(log_of(project)) == ALL
    assert counts["answers"] == sum(counts[key] for key in ("score", "refused", "unparsable", "out_of_range"))
    assert min(counts.values()) >= 1
    answered = scores_of(project)["groups"]["all"]["metrics"]["judge_answered"]["value"]
    assert answered == pytest.approx(counts["score"] / ALL)
    assert {request.headers["Authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert holds(project.root, KEY) == []
    assert KEY not in done.err + done.out


def test_an_identity_of_which_every_answer_was_refused_has_no_score_but_a_reason(sampled: TinyProject) -> None:
    with serving(lambda request: says("I'm sorry, I can't help with that.")) as server:
        assert judged_by(sampled, server)(*EVALUATE).status == 0
    found = scores_of(sampled)
    assert found["groups"]["all"]["metrics"]["judge"]["value"] is None
    assert found["per_identity"][0]["reasons"]["judge"] == "no answer is a score: 6 refused"


def test_more_requests_than_allowed_are_refused_before_the_first(sampled: TinyProject) -> None:
    with serving(lambda request: says("5")) as server:
        project = judged_by(sampled, server, f"evaluate.judge.max_requests={ALL - 1}")
        refused = project(*EVALUATE)
        assert refused.status == 2
        assert f"--set evaluate.judge.max_requests={ALL}" in refused.err
        assert server.requests == []
        assert project(*EVALUATE, "--set", f"evaluate.judge.max_requests={ALL}").status == 0


def test_an_error_ends_the_command_and_keeps_what_was_answered(sampled: TinyProject) -> None:
    with serving(lambda request: says("5") if request.number < 7 else fails(401, f"bad key {KEY}")) as server:
        project = judged_by(sampled, server, "evaluate.judge.concurrency=2")
        failed = project(*EVALUATE)
        assert failed.status == 2
        assert "OPENAI_API_KEY" in failed.err
        assert KEY not in failed.err
        assert len(log_of(project)) == 7
        assert len(server.requests) <= 9
        server.script = lambda request: says("5")
        assert project(*EVALUATE).status == 0
        assert sum(server.paid.values()) == ALL
    assert holds(project.root, KEY) == []


def test_what_is_missing_is_said_before_anything_is_asked(
    sampled: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "evaluate.judge.model" in sampled(*EVALUATE).err
    with serving(lambda request: says("5")) as server:
        project = judged_by(sampled, server)
        monkeypatch.delenv("OPENAI_API_KEY")
        missing = project(*EVALUATE)
        assert (missing.status, server.requests) == (4, [])
        assert "OPENAI_API_KEY holds no key" in missing.err
        assert project(*EVALUATE, "--set", "evaluate.judge.api_key_env=null").status == 0
        assert "Authorization" not in server.requests[0].headers


def test_a_judge_of_ones_own_judges(sampled: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stern.py").write_text("def judge(prompt, images):\n    return 2.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    project = sampled.configure("evaluate.judge.model=py:stern:judge", "evaluate.judge.repeats=1")
    assert "would run Python code" in project(*EVALUATE).err
    assert project(*EVALUATE, "--set", "evaluate.judge.allow_python=true").status == 0
    assert scores_of(project)["groups"]["few"]["metrics"]["judge"]["value"] == 2.5


def test_a_local_model_judges_and_other_weights_in_its_folder_are_another_judge(
    sampled: TinyProject, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file
    from tiny_vlm import save_vlm

    folder = save_vlm(tmp_path / "vlm")
    words = ("repeats=2", "images_per_identity=1", "options.max_new_tokens=1", f"model=hf:{folder}")
    project = sampled.configure(*(f"evaluate.judge.{word}" for word in words))
    done = project(*EVALUATE)
    assert done.status == 0, done.err
    assert scores_of(project)["judge"]["groups"]["all"]["answers"] == len(log_of(project)) == 2 * IDENTITIES
    assert "0 requests to make" in project(*EVALUATE, "--force").err
    weights = {name: 2 * weight for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert f"{2 * IDENTITIES} requests to make, 0 answers" in project(*EVALUATE, "--force").err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (f"api_key_env={KEY}", "must name an environment variable"),
        ("base_url=http://me:word@host/v1", "without user"),
        ("base_url=ftp://host", "must be http"),
        ("base_url=http://host/v1?key=x", "query"),
        ("options={messages: x}", "messages cannot be set here"),
        (f"api_key={KEY}", "unknown key 'evaluate.judge.api_key'"),
    ],
)
def test_a_setting_that_could_hold_a_secret_is_refused_unseen(project: TinyProject, setting: str, words: str) -> None:
    refused = project("status", "--set", f"evaluate.judge.{setting}")
    assert refused.status == 2
    assert refused.err.count(KEY) == 0
    assert "word@" not in refused.err
    assert words in refused.err
    assert holds(project.root, KEY) == []


def start(project: TinyProject, errors: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pogdiff_cli", "evaluate", "-C", str(project.root), *project.flags]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with errors.open("wb") as sink:
        return subprocess.Popen(
            [*command, "--metrics", "judge"], env=environment, stderr=sink, stdout=subprocess.DEVNULL
        )


@pytest.mark.parametrize("kills", [3, pytest.param(15, marks=pytest.mark.slow)])
def test_killed_at_random_it_pays_twice_for_no_more_than_what_was_under_way(
    sampled: TinyProject, tmp_path: Path, kills: int
) -> None:
    """Each kill may cost the answers that were under way, one a thread, and not one more."""
    threads, repeats = 3, 6 * kills
    total = IDENTITIES * IMAGES * repeats
    draw = random.Random(7)
    errors = tmp_path / "stderr.txt"
    with serving(lambda request: says('{"score": 5}', hang=0.03)) as server:
        words = (f"concurrency={threads}", f"repeats={repeats}")
        project = judged_by(sampled, server, *(f"evaluate.judge.{word}" for word in words))
        extra = 0
        for _ in range(kills):
            before = len(server.requests)
            process = start(project, errors)
            while len(server.requests) == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(draw.uniform(0.0, 0.12))
            process.send_signal(signal.SIGKILL)
            process.wait(60)
            time.sleep(0.3)  # what was under way arrives
            lost = len(server.requests) - len(log_of(project)) - extra
            assert 0 <= lost <= threads
            extra += lost
        assert len(log_of(project)) < total, "it was never disturbed"
        last = start(project, errors)
        assert last.wait(120) == 0, errors.read_text()
        # a log line is never asked for again
        assert len(server.requests) == total + extra
        asked = questions(server)
        assert len(asked) == IDENTITIES * IMAGES
        assert sum(asked.values()) - len(asked) * repeats == extra
    lines = log_of(project)
    assert len(lines) == len({line["key"] for line in lines}) == total
    assert scores_of(project)["judge"]["groups"]["all"]["answers"] == total
    assert holds(project.root, KEY) == []


def test_interrupted_it_keeps_the_answers_under_way(sampled: TinyProject, tmp_path: Path) -> None:
    with serving(lambda request: says("5", hang=0.1)) as server:
        project = judged_by(sampled, server, "evaluate.judge.concurrency=2")
        process = start(project, tmp_path / "stderr.txt")
        while len(server.requests) < 5 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert 5 <= len(server.requests) == len(log_of(project)) < ALL
        assert project(*EVALUATE).status == 0
        assert len(server.requests) == ALL
