"""A crash before or after any fsync, rename or deletion of a save, and a disk that is full: the run goes on."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from pogdiff_cli.engine import checkpoint
from pogdiff_cli.engine.checkpoint import Snapshot
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.project.atomic import HIDDEN, sweep

CRASHED = 77
CALLS = ("fsync", "replace", "rmdir", "unlink")
Events = list[tuple[str, str]]


def snapshot(step: int, numbers: int = 1000) -> Snapshot:
    """Weights, moments and facts that tell which step they are of."""
    weights = {"a": torch.full((numbers,), float(step)), "b": torch.arange(7.0) + step}
    return Snapshot(
        weights=weights,
        optimizer={f"exp_avg/{name}": 0.1 * tensor for name, tensor in weights.items()},
        ema={},
        state={"step": step},
    )


def same(first: Snapshot, second: Snapshot) -> bool:
    tensors = {**second.weights, **second.optimizer}
    found = {**first.weights, **first.optimizer}
    return first.state == second.state and all(torch.equal(found[name], tensors[name]) for name in tensors)


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a process of its own; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # whatever it is, this copy of the test must not go on
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def watched(happened: Callable[[str, str, Literal["before", "after"]], None]) -> None:
    """Call ``happened`` around every call that changes the disk for good; for a child, which never ends it."""

    def around(name: str, original: Any) -> Any:
        def call(target: Any, *rest: Any, **keys: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{target}") if name == "fsync" else str(target)
            happened(name, path, "before")
            result = original(target, *rest, **keys)
            happened(name, path, "after")
            return result

        return call

    for name in CALLS:
        setattr(os, name, around(name, getattr(os, name)))


def events_of_a_save(folder: Path) -> Events:
    """What a save does to the disk, in order."""
    log = folder.parent / "events.txt"

    def work() -> None:
        with log.open("w", encoding="utf-8") as file:
            watched(lambda name, path, when: file.write(f"{name} {path}\n") if when == "before" else None)
            checkpoint.save(folder, snapshot(6), keep=1)
            file.flush()

    assert in_child(work) == 0
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in log.read_text(encoding="utf-8").splitlines()]


def crash_at(folder: Path, moment: int) -> int:
    """Save step 6 in a child that ends at once at the ``moment``-th call: before it if even, after it if odd."""

    def work() -> None:
        seen = iter(range(10_000))

        def happened(name: str, path: str, when: str) -> None:
            del name, path, when
            if next(seen) == moment:
                os._exit(CRASHED)

        watched(happened)
        checkpoint.save(folder, snapshot(6), keep=1)

    return in_child(work)


def prepared(folder: Path) -> Path:
    checkpoint.save(folder, snapshot(3), keep=1)
    return folder


def test_every_file_is_on_the_disk_before_the_rename_and_the_rename_before_anything_is_deleted(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "checkpoints")
    events = events_of_a_save(folder)
    new = folder / "checkpoint-000006"
    rename = next(i for i, (name, path) in enumerate(events) if name == "replace" and HIDDEN in path)
    hidden = events[rename][1]
    flushed = {path for name, path in events[:rename] if name == "fsync"}
    assert flushed == {hidden, *(f"{hidden}/{path.name}" for path in new.iterdir())}
    assert events[rename + 1] == ("fsync", str(folder))
    deletions = [i for i, (name, _) in enumerate(events) if name in ("unlink", "rmdir")]
    assert len(deletions) >= 6  # the files of the old one, and its folder
    assert min(deletions) > rename + 1


def test_a_crash_at_any_moment_of_a_save_leaves_a_whole_checkpoint_and_the_next_save_succeeds(tmp_path: Path) -> None:
    moments = 2 * len(events_of_a_save(prepared(tmp_path / "counted")))
    rename = None
    for moment in range(moments):
        folder = prepared(tmp_path / str(moment))
        assert crash_at(folder, moment) == CRASHED
        found = checkpoint.latest_whole(folder)
        assert found is not None, f"nothing is left after a crash at {moment}"
        loaded = checkpoint.load(found)
        assert same(loaded, snapshot(loaded.step))
        if loaded.step == 6 and rename is None:
            rename = moment
        assert loaded.step == (3 if rename is None else 6)  # never back again
        sweep(folder)  # as the next attempt does
        checkpoint.save(folder, snapshot(6 if loaded.step == 3 else 9), keep=1)
        assert [path.name for path in folder.iterdir()] == [f"checkpoint-{6 if loaded.step == 3 else 9:06d}"]
    assert rename is not None
    assert rename >= 2 * 6  # the files and their folder were flushed before
    assert moments - rename >= 2 * 6  # and the deletions came after


def test_the_count_of_crash_points_is_that_of_a_save_which_ends_well(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "checkpoints")
    assert crash_at(folder, 10_000) == 0
    assert checkpoint.load(folder / "checkpoint-000006").step == 6


def mountable() -> bool:
    """Whether this process may mount a file system of its own."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, check=False, capture_output=True).returncode == 0
    )


@contextlib.contextmanager
def small_disk(kind: str, folder: Path) -> Iterator[None]:
    """300 kB for the whole folder, or for any file of this process."""
    folder.mkdir()
    if kind == "file size limit":
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("kind", ["file size limit", *(["small file system"] if mountable() else [])])
def test_a_full_disk_is_said_and_keeps_the_old_checkpoint(tmp_path: Path, kind: str) -> None:
    folder, said = tmp_path / "disk", tmp_path / "said.txt"

    def work() -> None:
        if kind == "file size limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        try:
            checkpoint.save(folder, snapshot(6, numbers=100_000), keep=1)
        except PogdiffError as problem:
            said.write_text(str(problem))

    with small_disk(kind, folder):
        prepared(folder)
        assert in_child(work) == 0
        assert [path.name for path in folder.iterdir()] == ["checkpoint-000003"]
        assert same(checkpoint.load(folder / "checkpoint-000003"), snapshot(3))
    assert "what was there is kept" in said.read_text()
    assert ("disk is full" in said.read_text()) == (kind == "small file system")
    assert "type the same command again" in said.read_text()
