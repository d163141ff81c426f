"""Ctrl-C, SIGTERM, a terminal that goes, a reader that leaves: an orderly end, or none; and the work goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TinyProject
from faults import Moment, copied, facts, in_child, leftovers, results, typed, watched
from processes import ROOT

from pogdiff_cli.cli import app

STAGES = ("caption", "index", "fit-density", "train", "sample", "evaluate")
FIRST = {  # what each stage writes in its midst
    "caption": "artifacts/names.yaml",
    "index": "artifacts/index",
    "fit-density": "artifacts/density",
    "train": "runs/pogdiff/checkpoints/checkpoint-000003",
    "sample": "runs/pogdiff/samples/samples.json",
    "evaluate": "runs/pogdiff/evaluation/scores.json",
}
SIGNALS = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Stopped", signal.SIGHUP: "Stopped"}


@pytest.fixture
def project(finished: TinyProject, tmp_path: Path) -> TinyProject:
    return copied(finished, tmp_path / "project")


def as_main(words: list[str], said: Path, *, out: int | None = None) -> int:
    """The command as the shell starts it, for a child; its standard error in ``said``. Returns the exit status."""
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    os.dup2(descriptor if out is None else out, 1)
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
    try:
        app.main(words)
    except SystemExit as ending:
        return int(ending.code or 0)
    return 98


def signalled(project: TinyProject, number: int, at: str, said: Path, *words: str) -> int:
    """Type a command that gets a signal when it is about to give a file its name."""

    def happened(now: Moment) -> None:
        if now.call != "fsync" and now.when == "before" and now.path == at and now.count == 1:
            os.kill(os.getpid(), number)

    def work() -> int:
        watched(project.root, happened)
        return as_main(typed(project, *words), said)

    return in_child(work)


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        pytest.param(stage, number, marks=[] if (place + turn) % 3 == 0 else pytest.mark.slow)
        for place, stage in enumerate(STAGES)
        for turn, number in enumerate(SIGNALS)
    ],
)
def test_a_signal_ends_any_stage_with_its_status_and_the_next_attempt_ends_in_the_same_bits(
    project: TinyProject, tmp_path: Path, stage: str, number: signal.Signals
) -> None:
    before, recorded = results(project), facts(project)
    said = tmp_path / "said.txt"
    status = signalled(project, number, FIRST[stage], said, stage, "--force", "--gpus", "none")
    assert status == 128 + number, said.read_text()
    assert "type the same command again to go on" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert SIGNALS[number] in said.read_text() or stage == "train"  # which has saved, and says at which step
    assert facts(project)[stage if stage in recorded else f"pogdiff/{stage}"][0] == "failed"
    again = in_child(lambda: as_main(typed(project, stage, "--gpus", "none"), said))
    assert again == 0, said.read_text()
    other = re.compile(r".*metrics\.jsonl|.*/checkpoints/.*")  # a mean since the resumption; one more checkpoint
    same = {name: digest for name, digest in before.items() if not other.fullmatch(name)}
    assert results(project).items() >= same.items()
    assert leftovers(project) == []


def test_a_terminal_that_goes_does_not_end_what_nohup_started(project: TinyProject, tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        said = tmp_path / "said.txt"
        status = signalled(project, signal.SIGHUP, FIRST["train"], said, "train", "--force", "--gpus", "none")
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert status == 0, said.read_text()


def closed_pipe() -> int:
    """A standard output that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_device() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize(
    "words", [("status",), ("status", "--json"), ("inspect",), ("index", "--force", "--gpus", "none")]
)
def test_a_reader_that_leaves_is_no_failure_and_stops_no_work(
    project: TinyProject, tmp_path: Path, words: tuple[str, ...]
) -> None:
    said = tmp_path / "said.txt"
    assert in_child(lambda: as_main(typed(project, *words), said, out=closed_pipe())) == 0
    assert said.read_text() == ""
    assert all(record[0] == "done" for record in facts(project).values())


@pytest.mark.parametrize("words", [("status",), ("status", "--json")])
def test_a_result_that_cannot_be_written_is_a_failure(
    project: TinyProject, tmp_path: Path, words: tuple[str, ...]
) -> None:
    said = tmp_path / "said.txt"
    assert in_child(lambda: as_main(typed(project, *words), said, out=full_device())) == 1
    assert "Standard output cannot be written" in said.read_text()
    assert "Traceback" not in said.read_text()


def test_notes_that_nobody_can_read_stop_no_work(project: TinyProject) -> None:
    def work() -> int:
        words = typed(project, "train", "--force", "--gpus", "none")
        os.dup2(full_device(), 2)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        try:
            app.main(words)
        except SystemExit as ending:
            return int(ending.code or 0)
        return 98

    assert in_child(work) == 0
    assert facts(project)["pogdiff/train"][0] == "done"


@pytest.mark.parametrize(
    "line",
    [
        "{pogdiff} status {words} | head -1",
        "{pogdiff} --help | head -1",
        pytest.param("{pogdiff} status {words} >&- 2>&- <&-", marks=pytest.mark.slow),
    ],
)
def test_the_shell_sees_no_traceback(project: TinyProject, line: str) -> None:
    pogdiff = f"{sys.executable} -m pogdiff_cli"
    words = " ".join(f"'{word}'" for word in ("-C", str(project.root), *project.flags))
    done = subprocess.run(
        ["bash", "-c", "set -o pipefail; " + line.format(pogdiff=pogdiff, words=words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode in (0, 1 if "--help" in line else 0)


def one_of(pid: int) -> int | None:
    """A child of this process."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    found = path.read_text().split() if path.exists() else []
    return int(found[0]) if found else None


def test_a_killed_data_worker_ends_training_with_a_message_and_the_next_attempt_goes_on(
    project: TinyProject, tmp_path: Path
) -> None:
    said, steps = tmp_path / "said.txt", ("--set", "train.max_train_steps=30", "--set", "train.logging_steps=1")
    words = ("train", "--name", "worked", "--gpus", "none", *steps)

    def killed(after: int) -> Callable[[], int]:
        def kill() -> None:
            metrics = project.root / "runs" / "worked" / "metrics.jsonl"
            while not metrics.is_file() or len(metrics.read_text().splitlines()) < after:
                time.sleep(0.005)
            worker = one_of(os.getpid())
            assert worker is not None
            os.kill(worker, signal.SIGKILL)

        def work() -> int:
            threading.Thread(target=kill, daemon=True).start()
            return as_main(typed(project, *words, "--set", "train.dataloader_num_workers=1"), said)

        return work

    assert in_child(killed(5)) == 1, said.read_text()
    assert "A data worker is gone" in said.read_text()
    assert re.search("killed by signal: Killed|exited unexpectedly|amid a message", said.read_text())
    assert "Traceback" not in said.read_text()
    assert in_child(lambda: as_main(typed(project, *words), said)) == 0
    assert "goes on at step" in said.read_text()
    whole = ("train", "--name", "whole", "--gpus", "none", *steps)
    assert in_child(lambda: as_main(typed(project, *whole), said)) == 0
    final = {name: digest for name, digest in results(project).items() if "/final/" in name}
    assert {name.replace("whole", "worked"): digest for name, digest in final.items() if "/whole/" in name} == {
        name: digest for name, digest in final.items() if "/worked/" in name
    }
