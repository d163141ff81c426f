"""``pogdiff train --dry-run``: the plan, and then what the run would take."""

from __future__ import annotations

from dataclasses import asdict

from pogdiff_cli.cli.console import Display, duration
from pogdiff_cli.cli.results import show_results
from pogdiff_cli.project.layout import Run
from pogdiff_cli.stages import rehearsal, road, train
from pogdiff_cli.stages.context import Context


def rehearse_training(display: Display, context: Context, run: Run) -> None:
    """Show the plan; and, where there is something to train, a rehearsal's figures."""
    with rehearsal.elsewhere(context) as apart:
        plan = [*road.prepare_training(apart, run), train.run(apart, run)]
        show_results(display, plan, emit="never")
        if not context.world.main:
            return
        figures = rehearsal.rehearse(apart) if plan[-1].state == "planned" else None
    if figures is not None:
        _show(display, figures)
    display.emit(
        {
            "stages": [asdict(result) for result in plan],
            "rehearsal": None if figures is None else figures.to_json(),
        }
    )


def _show(display: Display, found: rehearsal.Rehearsal) -> None:
    disk = found.disk
    batch = [
        f"{found.rows_per_micro_batch} rows",
        f"{found.micro_batches} micro-batches",
        f"{found.processes} processes",
    ]
    rows = [
        ("device", found.device),
        ("global batch", f"{found.global_batch} = {' x '.join(batch)}"),
        ("peak memory, training", f"{_size(found.peak_bytes)} of {_size(found.memory_bytes)}"),
        ("peak memory, one image", _size(found.image_peak_bytes)),
        ("seconds a step, at most", f"{found.seconds_per_step:.4g}"),
        ("second forwards expected", _share(found.second_forward)),
        (f"time to finish {found.steps} steps", duration(found.seconds)),
        ("seconds an image", f"{found.seconds_per_image:.3g}"),
        ("disk: caches", _size(disk.caches)),
        ("disk: checkpoints", f"{_size(disk.checkpoints)}, {_size(disk.checkpoint)} each"),
        ("disk: final weights", _size(disk.final)),
        ("disk: samples", _size(disk.samples)),
        ("disk: all", f"{_size(disk.total)} of {_size(disk.free)} free"),
    ]
    display.table("", ("a rehearsal", ""), rows)
    if found.pieces > 1:
        display.say(f"Memory did not suffice for whole micro-batches: they were cut into {found.pieces} each.")
    if found.processes > 1:
        display.say(f"One of {found.processes} processes was rehearsed, without what they tell each other.")
    if found.second_forward is None:
        display.say("How often roulette needs a second forward is known after index and fit-density; all are counted.")
    if disk.total > disk.free:
        display.say("The disk is too small for all of that; what exists already is part of the sum.")


def _share(share: float | None) -> str:
    return "not known yet" if share is None else f"{share:.1%}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"
