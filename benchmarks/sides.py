"""Sides of a comparison, each in a process of its own, that take turns."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
Kind = Literal["plain", "pogdiff", "naive"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is measured: which loop, on which project, with which settings on top."""

    name: str
    kind: Kind
    project: Path
    settings: tuple[str, ...] = ()
    gpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some steps of one side. ``waited``: seconds in which the loop waited for its batches."""

    steps: int
    seconds: float
    waited: float
    peak_host: int
    peak_gpu: int
    threads: int

    @property
    def per_step(self) -> float:
        """Seconds a step."""
        return self.seconds / self.steps


class SideFailed(RuntimeError):
    """A side ended before it was told to; the message is what it said."""


@dataclass
class Running:
    """A side whose process waits for its turn."""

    side: Side
    process: subprocess.Popen[str]
    log: Path
    blocks: list[Block] = field(default_factory=list)

    def wait_until_ready(self) -> None:
        """Encoding and the like are over; the next thing is the first step."""
        self._answer()

    def steps(self, count: int) -> Block:
        """Train ``count`` steps."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{count}\n")
            self.process.stdin.flush()
        return Block(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            said = self.log.read_text(encoding="utf-8", errors="replace")[-4000:]
            raise SideFailed(f"{self.side.name} ended with status {self.process.wait()}:\n{said}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def running(sides: Sequence[Side]) -> Iterator[list[Running]]:
    """Start every side on its own copy of its project, one after the other, with nothing encoded yet."""
    started: list[Running] = []
    with tempfile.TemporaryDirectory(prefix="pogdiff-benchmark-") as name:
        try:
            for number, side in enumerate(sides):
                one = _start(side, Path(name) / str(number))
                started.append(one)
                one.wait_until_ready()
            yield started
        finally:
            for one in started:
                _stop(one.process)


def take_turns(sides: Sequence[Running], *, rounds: int, steps: int, warm_up: int) -> Iterator[int]:
    """A B C, A B C, ...: every round is one block of each side. Yields the number of rounds done."""
    for one in sides:
        one.steps(warm_up)
    for number in range(rounds):
        for one in sides:
            one.blocks.append(one.steps(steps))
        yield number + 1


def _start(side: Side, folder: Path) -> Running:
    """Memory counts from the program's start: what encoding takes belongs to the side that encodes."""
    project = folder / "project"
    shutil.copytree(side.project, project, ignore=shutil.ignore_patterns("cache", "runs"), symlinks=True)
    log = folder / "log"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    gpu = ["--gpu"] if side.gpu else []
    command = [sys.executable, "-m", "benchmarks.side_process", side.kind, str(project), *gpu, *side.settings]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    return Running(side=side, process=process, log=log)


def _stop(process: subprocess.Popen[str]) -> None:
    """End of input ends a side; one that does not listen is killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
