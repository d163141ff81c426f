"""What a training step costs, as ratios measured side by side.

Five sides, each a process of its own with its own copy of the project, take turns (plain, vanilla, pogdiff, both,
naive, plain, ...), a block of some steps each; a ratio is taken within a round, and the median over rounds counts.
Memory is that of fresh processes, one after the other.

    python -m benchmarks.step                       the faces template; about five minutes on two cores
    python -m benchmarks.step --project DIR --set train.train_batch_size=8
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.projects import ENDLESS, make_faces, prepare
from benchmarks.ratios import MIN_PAIRS, Figure, Target, ratio
from benchmarks.sides import Block, Kind, Running, Side, running, take_turns
from pogdiff_cli.project.config import TrainConfig

#: Side: which loop, and its settings. In ``both`` and ``naive`` no caption is dropped: no row can be left out.
_EVERY_ROW = ("train.method=pogdiff", "train.neighbour_grad=both", "train.roulette=null", "train.caption_dropout=0.0")
SIDES: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "plain": ("plain", ()),
    "vanilla": ("pogdiff", ("train.method=vanilla",)),
    "pogdiff": ("pogdiff", ("train.method=pogdiff", f"train.roulette={TrainConfig().roulette}")),
    "both": ("pogdiff", _EVERY_ROW),
    "naive": ("naive", _EVERY_ROW),
}

#: Whose highest memory is measured, each time in a fresh process.
MEMORY = ("plain", "vanilla", "pogdiff")


def measure(
    project: Path, *, settings: Sequence[str], gpu: bool, rounds: int, steps: int, warm_up: int
) -> dict[str, Running]:
    """Run all sides; each has ``rounds`` blocks afterwards."""
    sides = [
        Side(name=name, kind=kind, project=project, settings=(*settings, *ENDLESS, *own), gpu=gpu)
        for name, (kind, own) in SIDES.items()
    ]
    with running(sides) as started:
        for done in take_turns(started, rounds=rounds, steps=steps, warm_up=warm_up):
            times = ", ".join(f"{one.side.name} {one.blocks[-1].per_step * 1000:.0f}" for one in started)
            print(f"round {done}/{rounds}, milliseconds a step: {times}", flush=True)
    return {one.side.name: one for one in started}


def measure_memory(sides: dict[str, Running], *, rounds: int, steps: int) -> dict[str, list[Block]]:
    """Some steps of each of MEMORY's sides in a process that does nothing before and nothing after; one a round."""
    blocks: dict[str, list[Block]] = {name: [] for name in MEMORY}
    for done in range(rounds):
        for name in MEMORY:
            with running([sides[name].side]) as (one,):
                blocks[name].append(one.steps(steps))
        peaks = ", ".join(f"{name} {memory(blocks[name][-1]) / 2**20:.0f}" for name in MEMORY)
        print(f"memory round {done + 1}/{rounds}, MiB: {peaks}", flush=True)
    return blocks


def memory(block: Block) -> float:
    """Bytes: the GPU's where there is one, else the process's."""
    return float(block.peak_gpu or block.peak_host)


def figures(sides: dict[str, Running], fresh: dict[str, list[Block]]) -> list[Figure]:
    """The ratios, from the blocks of all sides, and from those of fresh processes."""
    seconds = {name: [block.per_step for block in one.blocks] for name, one in sides.items()}
    waits = {name: [block.waited / block.seconds for block in one.blocks] for name, one in sides.items()}
    on_gpu = any(block.peak_gpu for one in sides.values() for block in one.blocks)
    peaks = {name: [memory(block) for block in blocks] for name, blocks in fresh.items()}
    kind = "GPU memory" if on_gpu else "resident memory"
    return [
        ratio(
            "speed",
            "vanilla, images a second over the plain loop's",
            seconds["plain"],
            seconds["vanilla"],
            Target(relation="at least", bound=2.0 if on_gpu else 1.5),
        ),
        ratio(
            "pogdiff",
            "PoGDiff step as it comes, over a vanilla step",
            seconds["pogdiff"],
            seconds["vanilla"],
            Target(relation="at most", bound=1.35),
        ),
        ratio(
            "both",
            "PoGDiff step, gradient through both and every row evaluated, over two separate forwards",
            seconds["both"],
            seconds["naive"],
            Target(relation="at most", bound=1.05),
        ),
        *(
            Figure(
                name=f"loading {name}",
                what=f"{name}: share of a step spent waiting for its batch",
                values=tuple(waits[name]),
                target=None if name == "plain" else Target(relation="below", bound=0.02),
            )
            for name in ("plain", "vanilla", "pogdiff")
        ),
        *(
            ratio(
                f"memory {name}",
                f"{name}: peak {kind} from start to end, encoding included, over the plain loop's",
                peaks[name],
                peaks["plain"],
                Target(relation="at most", bound=1.0),
            )
            for name in ("vanilla", "pogdiff")
        ),
    ]


def details(sides: dict[str, Running], fresh: dict[str, list[Block]], settings: Sequence[str]) -> dict[str, Any]:
    """Every block of every side."""
    return {
        "settings": list(settings),
        "threads": next(iter(sides.values())).blocks[0].threads,
        "steps_a_block": next(iter(sides.values())).blocks[0].steps,
        "sides": {
            name: {
                "settings": [setting for setting in one.side.settings if setting not in ENDLESS],
                "milliseconds_a_step": [round(block.per_step * 1000, 2) for block in one.blocks],
                "milliseconds_waited_a_step": [round(block.waited / block.steps * 1000, 3) for block in one.blocks],
                "peak_host_mib": [round(block.peak_host / 2**20, 1) for block in fresh.get(name, [])],
                "peak_gpu_mib": [round(block.peak_gpu / 2**20, 1) for block in fresh.get(name, [])],
            }
            for name, one in sides.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, help="a project (default: a fresh one from the faces template)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--gpu", action="store_true", help="on the first GPU (default: the CPU)")
    parser.add_argument("--rounds", type=int, default=7, help=f"pairs of each ratio, {MIN_PAIRS} or more")
    parser.add_argument("--steps", type=int, default=10, help="steps of each block")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before the first round")
    parser.add_argument("--memory-rounds", type=int, default=MIN_PAIRS, help="fresh processes of each side")
    parser.add_argument("--name", help="of the result file (default: step-cpu or step-gpu)")
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="folder of result files")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.memory_rounds) < MIN_PAIRS:
        parser.error(f"--rounds and --memory-rounds must be {MIN_PAIRS} or more")
    with tempfile.TemporaryDirectory(prefix="pogdiff-benchmark-") as folder:
        if options.project is None:
            project = make_faces(Path(folder) / "faces")
        else:
            project = options.project
            prepare(project, options.settings)
        sides = measure(
            project,
            settings=options.settings,
            gpu=options.gpu,
            rounds=options.rounds,
            steps=options.steps,
            warm_up=options.warm_up,
        )
        fresh = measure_memory(sides, rounds=options.memory_rounds, steps=options.steps)
    found = figures(sides, fresh)
    for figure in found:
        print(figure.line())
    name = options.name or ("step-gpu" if options.gpu else "step-cpu")
    path = results.write(
        name,
        title="A training step" if options.project is None else f"A training step, {name}",
        figures=found,
        details=details(sides, fresh, options.settings),
        folder=options.results,
    )
    print(path)


if __name__ == "__main__":
    main()
