"""Two commands, or two machines, on one project: one writer at a time, by name, and nobody waits for the dead."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, TinyProject
from faults import copied
from filelock import FileLock

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project import locks
from pogdiff_cli.project.locks import locked

ELSEWHERE = {"pid": 4711, "host": "another-machine", "command": "pogdiff train", "since": 1.0e9, "beat": "0000000007"}


@pytest.fixture
def project(finished: TinyProject, tmp_path: Path, pogdiff: Command) -> TinyProject:
    return copied(finished, tmp_path / "project", command=pogdiff)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life every few milliseconds."""
    for name, seconds in (("_BEAT", 0.02), ("_LOOK", 0.01), ("_SILENT", 0.3)):
        monkeypatch.setattr(locks, name, seconds)


@contextlib.contextmanager
def held(lock: Path) -> Iterator[int]:
    """Another process holds this lock; its number."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(lock, "It", "pogdiff train --name other"):
            os.write(writer, b"held")
            signal.pause()
    assert os.read(reader, 4) == b"held"
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


LOCKS = Path("artifacts/cache/locks")


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        ("caption", ("caption",)),
        ("index", ("index",)),
        ("fit-density", ("fit-density",)),
        ("runs-pogdiff", ("train", "--name", "pogdiff")),
        pytest.param(
            "runs-pogdiff", ("sample", "--run", "pogdiff"), marks=pytest.mark.slow
        ),  # what one stage of a run reads, another writes
        pytest.param("runs-pogdiff", ("evaluate", "--run", "pogdiff"), marks=pytest.mark.slow),
        ("rate", ("rate",)),
        pytest.param("report", ("report",), marks=pytest.mark.slow),
        pytest.param("export", ("export", "exported"), marks=pytest.mark.slow),
    ],
)
def test_a_second_writer_is_refused_by_the_holders_name(
    project: TinyProject, lock: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forced = () if words[0] in ("rate", "report", "export") else ("--force", "--gpus", "none")
    with held(project.root / LOCKS / f"{lock}.lock") as holder:
        said = project(*words, *forced)
        assert said.status == Exit.LOCKED
        assert f"process {holder} on {os.uname().nodename} ('pogdiff train --name other', since 2" in said.err
    assert project(*words, *forced).status == 0  # kill -9 leaves no lock


def test_the_manifest_has_a_lock_of_its_own_that_is_waited_for(project: TinyProject) -> None:
    with held(project.root / LOCKS / "manifest.lock") as holder:
        threading.Timer(1.0, os.kill, (holder, signal.SIGSTOP)).start()  # a hung one holds it, too
        threading.Timer(1.5, os.kill, (holder, signal.SIGKILL)).start()
        started = time.monotonic()
        assert project("caption", "--force").status == 0
        assert time.monotonic() - started > 1.0


def test_a_name_that_a_dead_process_of_this_machine_left_is_no_holder(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.with_suffix(".holder.json").write_text(json.dumps({**ELSEWHERE, "host": os.uname().nodename}))
    started = time.monotonic()
    with locked(lock, "It", "mine"):
        assert time.monotonic() - started < 1.0


@pytest.mark.usefixtures("soon")
def test_a_silent_holder_on_another_machine_is_gone(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    name = lock.with_suffix(".holder.json")
    name.write_text(json.dumps(ELSEWHERE))
    started = time.monotonic()
    with locked(lock, "It", "mine"):
        assert time.monotonic() - started >= 0.3
        assert json.loads(name.read_text())["command"] == "mine"
    assert not name.exists()


@pytest.mark.usefixtures("soon")
def test_a_holder_on_another_machine_that_shows_life_is_a_holder_where_locks_do_not_reach(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    name = lock.with_suffix(".holder.json")
    name.write_text(json.dumps(ELSEWHERE))
    beat = json.dumps({**ELSEWHERE, "beat": "0000000008"})
    threading.Timer(0.1, name.write_text, (beat,)).start()
    with pytest.raises(PogdiffError, match="process 4711 on another-machine") as refusal, locked(lock, "It", "mine"):
        pytest.fail("both hold it")
    assert refusal.value.exit_code == Exit.LOCKED
    assert name.read_text() == beat  # it is theirs
    with FileLock(lock, timeout=0):  # and the kernel's lock has been let go
        pass


@pytest.mark.usefixtures("soon")
def test_a_holder_shows_signs_of_life_of_constant_length(tmp_path: Path) -> None:
    name = tmp_path / "a.holder.json"
    with locked(tmp_path / "a.lock", "It", "mine"):
        seen = set()
        size = name.stat().st_size
        while len(seen) < 3:
            seen.add(json.loads(name.read_text())["beat"])
            assert name.stat().st_size == size  # a full disk takes it
            time.sleep(0.005)


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(lock: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "_acquire", none)
    with pytest.raises(PogdiffError, match="has no locks") as refusal, locked(tmp_path / "a.lock", "It", "mine"):
        pytest.fail("there is no lock")
    assert "nolock" in str(refusal.value.hint)


def test_two_runs_train_at_the_same_time(project: TinyProject) -> None:
    with held(project.root / LOCKS / "runs-first.lock"):
        said = project("train", "--name", "second", "--gpus", "none")
        assert said.status == 0, said.err
        assert project("train", "--name", "first", "--gpus", "none").status == Exit.LOCKED
    assert project("train", "--name", "first", "--gpus", "none").status == 0
