"""Published architectures on a GPU: images a second, and the share of the card's matrix peak that training reaches.

Weights are random, sizes are the published ones, precision is bf16. Stable Diffusion 1.5 is compared with the plain
diffusers loop, side by side; the others train alone. The share counts the operations of the denoiser's forward and
backward (nothing that is computed twice, no optimizer) over the fastest matrix product that the card itself shows,
and over its maker's figure where the table in flops.py has one.

    python -m benchmarks.architectures                     Stable Diffusion 1.5 at 512 px
    python -m benchmarks.architectures sdxl sd35 flux
    python -m benchmarks.architectures --tiny              tiny sizes on the CPU: that the code runs, not a measurement
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import results
from benchmarks.flops import measured_peak, published_peak, step_flops
from benchmarks.models import ARCHITECTURES, Size, save_extractor, save_random
from benchmarks.projects import ENDLESS, make_noise, prepare
from benchmarks.ratios import MIN_PAIRS, Figure, Target, ratio
from benchmarks.sides import Kind, Running, Side, running, take_turns

NEEDS_A_GPU = 2  # exit status


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one architecture is trained."""

    resolution: int
    batch: int
    tuning: Literal["full", "lora"]
    checkpointing: bool
    sides: tuple[str, ...]


PLANS = {
    "sd15": Plan(resolution=512, batch=8, tuning="full", checkpointing=False, sides=("plain", "vanilla", "pogdiff")),
    "sdxl": Plan(resolution=1024, batch=4, tuning="full", checkpointing=True, sides=("vanilla",)),
    "sd35": Plan(resolution=1024, batch=4, tuning="full", checkpointing=True, sides=("vanilla",)),
    "flux": Plan(resolution=1024, batch=2, tuning="lora", checkpointing=True, sides=("vanilla",)),
}
_KINDS: dict[str, Kind] = {"plain": "plain", "vanilla": "pogdiff", "pogdiff": "pogdiff"}


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Operations a second."""

    measured: float
    published: float | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for on the command line."""

    size: Size
    rounds: int
    steps: int
    warm_up: int
    workers: int
    batch: int | None
    resolution: int | None

    def plan(self, name: str) -> Plan:
        """The plan of an architecture under these options."""
        plan = PLANS[name]
        tiny = self.size == "tiny"
        return Plan(
            resolution=32 if tiny else self.resolution or plan.resolution,
            batch=2 if tiny else self.batch or plan.batch,
            tuning=plan.tuning,
            checkpointing=plan.checkpointing,
            sides=plan.sides,
        )


def measure(name: str, plan: Plan, options: Options, folder: Path) -> dict[str, Running]:
    """Save the random pipeline, make a project for it, and let its sides take turns."""
    model = folder / "model"
    save_random(name, options.size, model)
    extractor = save_extractor(folder / "extractor")
    project = make_noise(
        folder / "project", model=model, extractor=f"hf:{extractor}#cls", resolution=plan.resolution, images=64
    )
    prepare(project)
    settings = (
        *ENDLESS,
        f"train.train_batch_size={plan.batch}",
        f"train.tuning={plan.tuning}",
        f"train.gradient_checkpointing={str(plan.checkpointing).lower()}",
        f"train.dataloader_num_workers={options.workers}",
        "train.mixed_precision=bf16",
        "train.learning_rate=1e-6",
    )
    sides = [
        Side(
            name=side,
            kind=_KINDS[side],
            project=project,
            settings=settings if side == "plain" else (*settings, f"train.method={side}"),
            gpu=options.size == "published",
        )
        for side in plan.sides
    ]
    with running(sides) as started:
        for done in take_turns(started, rounds=options.rounds, steps=options.steps, warm_up=options.warm_up):
            times = ", ".join(f"{one.side.name} {one.blocks[-1].per_step * 1000:.0f}" for one in started)
            print(f"{name} round {done}/{options.rounds}, milliseconds a step: {times}", flush=True)
    shutil.rmtree(model)  # tens of gigabytes
    return {one.side.name: one for one in started}


def figures(name: str, plan: Plan, sides: dict[str, Running], flops: int, peaks: Peaks, size: Size) -> list[Figure]:
    """Images a second, shares of the peak, and the ratio to the plain loop where there is one."""

    def target(relation: Literal["at least", "at most"], bound: float) -> Target | None:
        return Target(relation=relation, bound=bound) if size == "published" else None  # tiny sizes measure nothing

    title = f"{ARCHITECTURES[name].title}, {plan.resolution} px, batch {plan.batch}, {plan.tuning}"
    seconds = {side: [block.per_step for block in one.blocks] for side, one in sides.items()}
    found = [
        Figure(
            name=f"{name} images {side}",
            what=f"{title}: {side}, images a second",
            values=tuple(plan.batch / value for value in values),
        )
        for side, values in seconds.items()
    ]
    achieved = [flops / value for value in seconds["vanilla"]]
    for kind, peak in (("measured", peaks.measured), ("published", peaks.published)):
        if peak is not None:
            what = f"{title}: vanilla, share of the {kind} bf16 matrix peak ({peak / 1e12:.4g} Tflop/s)"
            values = tuple(value / peak for value in achieved)
            found.append(Figure(name=f"{name} peak {kind}", what=what, values=values))
    if "plain" in seconds:
        what = f"{title}: vanilla, images a second over the plain loop's"
        found.append(ratio(f"{name} speed", what, seconds["plain"], seconds["vanilla"], target("at least", 2.0)))
    if "pogdiff" in seconds:
        what = f"{title}: PoGDiff step as it comes, over a vanilla step"
        found.append(ratio(f"{name} pogdiff", what, seconds["pogdiff"], seconds["vanilla"], target("at most", 1.35)))
    return found


def details(plan: Plan, sides: dict[str, Running], flops: int) -> dict[str, Any]:
    """Every block of every side."""
    return {
        "tflop_a_step": round(flops / 1e12, 6),
        "gradient_checkpointing": plan.checkpointing,
        "sides": {
            side: {
                "milliseconds_a_step": [round(block.per_step * 1000, 2) for block in one.blocks],
                "share_waited": round(statistics.median(block.waited / block.seconds for block in one.blocks), 5),
                "peak_gpu_gib": round(one.blocks[-1].peak_gpu / 2**30, 2),
                "peak_host_gib": round(one.blocks[-1].peak_host / 2**30, 2),
            }
            for side, one in sides.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, write; without a GPU say so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ARCHITECTURES)}")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU: no measurement")
    parser.add_argument("--rounds", type=int, default=5, help=f"pairs of each ratio, {MIN_PAIRS} or more")
    parser.add_argument("--steps", type=int, default=10, help="steps of each block")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before the first round")
    parser.add_argument("--batch", type=int, help="images a step (default: each architecture's own)")
    parser.add_argument("--resolution", type=int, help="pixels a side (default: each architecture's own)")
    parser.add_argument("--workers", type=int, default=4, help="data workers of every side")
    parser.add_argument("--name", help="of the result file (default: architectures)")
    parser.add_argument("--results", type=Path, help="folder of result files (default: docs/results, with --tiny none)")
    given = parser.parse_args(arguments)
    names = given.names or (list(ARCHITECTURES) if given.tiny else ["sd15"])
    if unknown := sorted(set(names) - set(ARCHITECTURES)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(ARCHITECTURES)}")
    if given.rounds < MIN_PAIRS:
        parser.error(f"--rounds must be {MIN_PAIRS} or more")
    if not given.tiny and not torch.cuda.is_available():
        print("This benchmark needs a GPU, and torch sees none. --tiny runs its code on the CPU.", file=sys.stderr)
        return NEEDS_A_GPU
    options = Options(
        size="tiny" if given.tiny else "published",
        rounds=given.rounds,
        steps=given.steps,
        warm_up=given.warm_up,
        workers=0 if given.tiny else given.workers,
        batch=given.batch,
        resolution=given.resolution,
    )
    found, told = _run(names, options)
    for figure in found:
        print(figure.line())
    folder = given.results or (None if given.tiny else results.RESULTS)
    if folder is not None:
        what = (
            "The same code at tiny sizes on a CPU: no measurement" if given.tiny else "Published architectures on a GPU"
        )
        print(results.write(given.name or "architectures", title=what, figures=found, details=told, folder=folder))
    return 0


def _run(names: Sequence[str], options: Options) -> tuple[list[Figure], dict[str, Any]]:
    tiny = options.size == "tiny"
    device = torch.device("cpu" if tiny else "cuda")
    peaks = Peaks(
        measured=measured_peak(device, n=256 if tiny else 8192),
        published=None if tiny else published_peak(torch.cuda.get_device_name(0)),
    )
    found: list[Figure] = []
    told: dict[str, Any] = {}
    for name in names:
        plan = options.plan(name)
        latent = plan.resolution // 8
        flops = step_flops(ARCHITECTURES[name], options.size, batch=plan.batch, latent=latent, tuning=plan.tuning)
        with tempfile.TemporaryDirectory(prefix="pogdiff-benchmark-") as work:
            sides = measure(name, plan, options, Path(work))
        found += figures(name, plan, sides, flops, peaks, options.size)
        told[name] = details(plan, sides, flops)
    return found, told


if __name__ == "__main__":
    sys.exit(main())
