"""A command as a process that is ended at a random moment, in two ways: typed anew, or as a fork of this process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from processes import ROOT

from pogdiff_cli.cli.app import _status
from pogdiff_cli.project.manifest import read_manifest

Start = Literal["typed", "forked"]  # a fork has its libraries loaded: the same kills in a tenth of the time
PATIENCE = 300.0


class Ended(Protocol):
    """A process that was started."""

    def poll(self) -> int | None: ...
    def wait(self, timeout: float) -> int: ...
    def send_signal(self, number: int) -> None: ...


class _Fork:
    """A child of this process that runs one command and ends."""

    def __init__(self, words: Sequence[str], said: Path) -> None:
        self._status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._run(words, said)

    @staticmethod
    def _run(words: Sequence[str], said: Path) -> None:
        status = 99
        try:
            sink = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            status = _status(list(words))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        if self._status is None:
            pid, raw = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(raw)
        return self._status

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            assert time.monotonic() < end, "the command does not end"
            time.sleep(0.002)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._pid, number)


def begin(words: Sequence[str], said: Path, start: Start) -> Ended:
    """``pogdiff WORDS`` in a process of its own; what it says goes to ``said``."""
    if start == "forked":
        return _Fork(words, said)
    with said.open("w") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", "pogdiff_cli", *words],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
            stdout=sink,
            stderr=subprocess.STDOUT,
            text=True,
        )


@dataclass(frozen=True, kw_only=True)
class Besieged:
    """What came of a command that was ended again and again, and typed again."""

    kills: int
    seconds: tuple[float, ...]  # that each attempt had lasted when it was ended


def besiege(
    words: Sequence[str],
    said: Path,
    *,
    start: Start,
    kills: int,
    draw: random.Random,
    lasts: float,
    going: Callable[[], bool],
    signals: Sequence[signal.Signals] = (signal.SIGKILL,),
) -> Besieged:
    """End the command ``kills`` times, each time up to ``lasts`` seconds after it got ``going``; then let it end."""
    survived, seconds = 0, []
    for _ in range(kills):
        process = begin(words, said, start)
        began = time.monotonic()
        while process.poll() is None and not going() and time.monotonic() < began + PATIENCE:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, lasts))
        if process.poll() is None:
            number = draw.choice(list(signals))
            process.send_signal(number)
            status = process.wait(PATIENCE)
            assert status in (-number, 128 + number, 0), said.read_text()
            seconds.append(time.monotonic() - began)
            survived += status != 0
        else:
            assert process.poll() == 0, said.read_text()
    last = begin(words, said, start)
    assert last.wait(PATIENCE) == 0, said.read_text()
    return Besieged(kills=survived, seconds=tuple(seconds))


def runs_now(root: Path, key: str) -> Callable[[], bool]:
    """Whether the manifest says that a stage is being worked on, by an attempt that is not an earlier one."""
    before = root / "manifest.yaml"
    stamp = before.stat().st_mtime_ns if before.exists() else 0

    def going() -> bool:
        if not before.exists() or before.stat().st_mtime_ns == stamp:
            return False
        record = read_manifest(before).record(key)
        return record is not None and record.state == "running"

    return going
