"""One side of a comparison, alone in its process: it trains some steps whenever its parent asks, and says how long.

The parent writes a number of steps a line to standard input; each is answered by one line of JSON on standard output.
The loops know nothing of it: what they iterate over waits between two blocks, and everything is timed from there.

    python -m benchmarks.side_process plain PROJECT [--gpu] [KEY=VALUE ...]
    python -m benchmarks.side_process pogdiff PROJECT [--gpu] [KEY=VALUE ...]      what `pogdiff train` does
    python -m benchmarks.side_process naive PROJECT [--gpu] [KEY=VALUE ...]        the same, Algorithm 1 as printed
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch

TRAINING = "Training"  # how the label of the training loop begins, in the package and in the plain loop


class Pace:
    """Wraps a training loop's iterator: runs as many steps as each line of ``requests`` says, then reports."""

    def __init__(self, requests: Iterable[str], reply: Callable[[dict[str, Any]], None]) -> None:
        self.requests, self.reply = requests, reply

    def __call__(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterator[Any]:
        del total
        return self._paced(iter(items)) if label.startswith(TRAINING) else iter(items)

    def _paced(self, items: Iterator[Any]) -> Iterator[Any]:
        self.reply({"ready": True})
        for request in self.requests:
            steps, waited = int(request), 0.0
            synchronise()
            started = time.perf_counter()
            for _ in range(steps):
                before = time.perf_counter()
                item = next(items)
                waited += time.perf_counter() - before
                yield item  # comes back when the loop has finished this step and asks for the next
            synchronise()
            seconds = time.perf_counter() - started
            self.reply({"steps": steps, "seconds": seconds, "waited": waited, **memory()})
        raise SystemExit(0)


def synchronise() -> None:
    """Wait until the GPU has done all it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def memory() -> dict[str, int]:
    """Highest memory so far, bytes: of the process, and on the GPU."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return {"peak_host": peak_host(), "peak_gpu": gpu}


def peak_host() -> int:
    """The highest resident size of this program, bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the parent's size before the program was loaded
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_plain(project: Path, settings: list[str], pace: Pace, *, gpu: bool) -> None:
    """The plain diffusers loop."""
    from benchmarks.plain_loop import train_project
    from pogdiff_cli.project.loading import parse_assignments

    train_project(project, parse_assignments(settings), cpu=not gpu, pace=pace)


def run_pogdiff(project: Path, settings: list[str], pace: Pace, *, gpu: bool) -> None:
    """The command line that a user types; only its progress bar is ours."""
    from pogdiff_cli.cli.app import main
    from pogdiff_cli.cli.console import Display

    Display.track = lambda self, items, label, total=None: pace(items, label, total)  # type: ignore[method-assign]
    words = [word for setting in settings for word in ("--set", setting)]
    main(["train", "-C", str(project), "--gpus", "1" if gpu else "none", "--name", "benchmark", *words])


def run_naive(project: Path, settings: list[str], pace: Pace, *, gpu: bool) -> None:
    """The same command line, with Algorithm 1's two separate forwards of every row in place of our objective."""
    from pogdiff_cli.engine import objectives

    objectives.PogDiff.__call__ = naive_objective  # type: ignore[method-assign]
    run_pogdiff(project, settings, pace, gpu=gpu)


def naive_objective(self: Any, predict: Any, batch: Any, *, denominator: float | None = None) -> Any:
    """Algorithm 1, lines 9 and 10: h = f(x_t, t, y); h' = f(x_t, t, y') for all rows; both have a graph."""
    del self
    from pogdiff_cli.engine.terms import Loss
    from pogdiff_cli.method import pog_loss

    condition = dict(batch.condition)
    h = predict(batch.x_t, batch.t, condition)
    psi = batch.weight.new_zeros(len(h))
    other = condition
    if batch.neighbour is not None and batch.neighbour_rows is not None and batch.neighbour_psi is not None:
        rows = batch.neighbour_rows
        psi = psi.index_copy(0, rows, batch.neighbour_psi)
        other = {name: tensor.index_copy(0, rows, batch.neighbour[name]) for name, tensor in condition.items()}
    h_neighbour = predict(batch.x_t, batch.t, other)
    terms = pog_loss(h, h_neighbour, batch.target, psi, batch.weight)
    count = float(len(h)) if denominator is None else denominator
    parts = {"denoise": terms.denoise.sum() / count, "neighbour": terms.neighbour.sum() / count}
    return Loss(value=parts["denoise"] + parts["neighbour"], parts={name: t.detach() for name, t in parts.items()})


KINDS = {"plain": run_plain, "pogdiff": run_pogdiff, "naive": run_naive}


def _answers() -> TextIO:
    """Standard output for answers alone: whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Serve one side until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("project", type=Path)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    answers = _answers()

    def reply(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message | {"threads": torch.get_num_threads()}) + "\n")

    # readline, not the file's iterator, which would read ahead
    pace = Pace(iter(sys.stdin.readline, ""), reply)
    KINDS[arguments.kind](arguments.project, arguments.settings, pace, gpu=arguments.gpu)


if __name__ == "__main__":
    main()
