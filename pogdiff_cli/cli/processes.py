"""Options for several processes; and which one this is: alone, a worker, or the one that starts workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pogdiff_cli.errors import Exit, PogdiffError

if TYPE_CHECKING:
    from pogdiff_cli.cli.options import Session
    from pogdiff_cli.engine.devices import Devices
    from pogdiff_cli.engine.world import World

F = TypeVar("F", bound=Callable[..., Any])
_TIMEOUT = 600.0


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """What was typed about processes."""

    gpus: str | None = None
    processes: int | None = None
    nnodes: int = 1
    rdzv_endpoint: str | None = None
    max_restarts: int = 0
    dist_timeout: float = _TIMEOUT
    share_gpus: bool = False


def process_options(function: F) -> F:
    """How many processes a command takes, and what happens when one fails."""
    options = (
        click.option("--processes", type=click.IntRange(1), help="Processes on the CPU, where there is no GPU."),
        click.option("--nnodes", type=click.IntRange(1), default=1, help="Machines; type the command on each."),
        click.option("--rdzv-endpoint", metavar="HOST:PORT", help="Where the machines meet: one of them."),
        click.option("--max-restarts", type=click.IntRange(0), default=0, help="Start again after a failure so often."),
        click.option(
            "--dist-timeout",
            type=click.FloatRange(1),
            default=_TIMEOUT,
            show_default=True,
            help="Seconds after which a silent process ends the command.",
        ),
        click.option("--share-gpus", is_flag=True, help="Take GPUs that another command of this project is using."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def taken_from(options: dict[str, Any]) -> ProcessOptions:
    """The options of ``process_options`` and ``--gpus``, out of ``options``."""
    fields = ProcessOptions.__dataclass_fields__
    return ProcessOptions(**{name: options.pop(name) for name in fields if name in options})


def in_world(session: Session, typed: ProcessOptions, *, locks: Path, launches: bool) -> tuple[World, Devices]:
    """Who this process is, and its devices. The process that starts workers ends here, with their exit status."""
    from pogdiff_cli.engine.devices import select
    from pogdiff_cli.engine.world import World, join, place_from

    # with --nnodes a Slurm task is a machine, on which the processes are still to be started
    to_be_started = typed.nnodes > 1 and "WORLD_SIZE" not in os.environ
    place = None if to_be_started else place_from(os.environ)
    if place is not None:
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(place.local_rank + 1)))
        devices = select(typed.gpus, local_rank=place.local_rank, local_size=local_size)
        return join(place, timeout=typed.dist_timeout, cuda=devices.own.type == "cuda"), devices
    devices = select(typed.gpus)
    if launches:
        _launch_where_asked_for(session, typed, devices)
    if typed.gpus is None and not typed.share_gpus:
        devices = _first_free(devices, locks)
    return World(timeout=typed.dist_timeout), devices


def _first_free(devices: Devices, locks: Path) -> Devices:
    """Another GPU where another command of the project has taken the first."""
    from pogdiff_cli.engine.devices import Devices, available
    from pogdiff_cli.project.leases import free

    found = free(locks, available())
    return Devices(used=tuple(found[:1])) if found else devices


def processes_here(typed: ProcessOptions, devices: Devices) -> int:
    """How many processes this machine takes part with; refuses options that do not go together."""
    cuda = devices.used[0].kind == "cuda"
    if typed.processes is not None and cuda:
        raise PogdiffError(
            "--processes is for the CPU; on GPUs there is one process for each.",
            hint="Type --gpus with their number, or --gpus none --processes 2.",
            exit_code=Exit.USAGE,
        )
    if typed.nnodes > 1 and typed.rdzv_endpoint is None:
        raise PogdiffError(
            "--nnodes needs --rdzv-endpoint: the machines have to know where to meet.",
            hint="For instance --rdzv-endpoint HOST:29500, with the name of one of them.",
            exit_code=Exit.USAGE,
        )
    return len(devices.used) if cuda else typed.processes or 1


def _launch_where_asked_for(session: Session, typed: ProcessOptions, devices: Devices) -> None:
    from pogdiff_cli.engine.launch import Launch, launch

    processes = processes_here(typed, devices)
    if processes == 1 and typed.nnodes == 1 and not typed.max_restarts:
        return
    plan = Launch(
        processes=processes,
        nnodes=typed.nnodes,
        rdzv_endpoint=typed.rdzv_endpoint,
        max_restarts=typed.max_restarts,
    )
    raise click.exceptions.Exit(launch(session.arguments, plan))
