"""Options that commands share, and what they add up to: a session with a project and its context."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pogdiff_cli.errors import Exit, PogdiffError

if TYPE_CHECKING:
    from pogdiff_cli.cli.console import Display
    from pogdiff_cli.stages.context import Context
    from pogdiff_cli.stages.requirements import Command

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Session:
    """One invocation: what was typed, and how it is shown."""

    command: str
    arguments: tuple[str, ...] = ()
    _display: Display | None = None

    @property
    def display(self) -> Display:
        """What shows results; made when something is shown, so that ``--help`` loads no rich."""
        if self._display is None:
            self.configure()
        assert self._display is not None
        return self._display

    def configure(self, *, json_output: bool = False, verbosity: int = 0) -> None:
        """Choose how much is shown, and as what. Of several processes only the first shows results."""
        from pogdiff_cli.cli.console import Display

        speaks = os.environ.get("RANK", "0") == "0" or int(os.environ.get("WORLD_SIZE", "1")) < 2
        self._display = Display(json_output=json_output and speaks, verbosity=verbosity if speaks else -1)

    def close(self) -> None:
        """Take progress bars away."""
        if self._display is not None:
            self._display.close()


def output_options(function: F) -> F:
    """``--json``, ``-q``, ``-v``: how much is shown, and as what."""
    options = (
        click.option("--json", "json_output", is_flag=True, help="Print the result as JSON, alone, on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Print tracebacks of internal errors."),
    )
    return _applied(function, options)


def project_options(function: F) -> F:
    """``-C`` and ``--set``: which project, and which settings this once."""
    options = (
        click.option("-C", "folder", type=click.Path(path_type=Path), default=Path(), help="The project's folder."),
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, this once."),
    )
    return output_options(_applied(function, options))


def stage_options(function: F) -> F:
    """What every stage takes."""
    options = (
        click.option("--gpus", metavar="N|LIST|none", help="How many GPUs, which, or none. Default: a free one."),
        click.option("--force", is_flag=True, help="Do it again though it is up to date."),
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
        click.option("--no-prerequisites", is_flag=True, help="Refuse, rather than run, what has to come first."),
    )
    return project_options(_applied(function, options))


def sharded_stage_options(function: F) -> F:
    """What every stage takes that several processes share."""
    from pogdiff_cli.cli.processes import process_options

    return stage_options(process_options(function))


def set_display(session: Session, *, json_output: bool, quiet: bool, verbose: bool) -> Display:
    """Put the output options into force."""
    session.configure(json_output=json_output, verbosity=-1 if quiet else int(verbose))
    return session.display


def make_context(
    session: Session,
    options: dict[str, Any],
    extra: dict[str, Any] | None = None,
    *,
    needs: Command | None = None,
    run: str | None = None,
) -> Context:
    """Open the project and gather what stages need; takes the shared options out of ``options``.

    ``extra`` maps dotted keys to the values of a command's own flags; unset ones are None and override nothing.
    ``needs`` is the command whose weights have to be here, and ``run`` the run it is about.
    """
    from pogdiff_cli.project.layout import open_project
    from pogdiff_cli.project.loading import parse_assignments

    display = set_display(
        session,
        json_output=options.pop("json_output"),
        quiet=options.pop("quiet"),
        verbose=options.pop("verbose"),
    )
    overrides = parse_assignments(options.pop("assignments"))
    overrides |= {key: value for key, value in (extra or {}).items() if value is not None}
    project = open_project(options.pop("folder"), overrides)
    force, dry_run = options.pop("force", False), options.pop("dry_run", False)
    if force and dry_run:
        raise PogdiffError("--force and --dry-run exclude each other.", exit_code=Exit.USAGE)
    if dry_run:
        needs = "rehearsal" if needs == "train" else None  # the other plans take no weights
    if needs is not None:
        from pogdiff_cli.stages.requirements import refuse_absent

        refuse_absent(project, needs, run=run, overrides=overrides)
    # torch comes with these: a mistake in what was typed or configured is said before it is loaded
    from pogdiff_cli.cli.processes import in_world, processes_here, taken_from
    from pogdiff_cli.stages.context import Context

    shared = "max_restarts" in options  # by several processes
    typed = taken_from(options)
    world, devices = in_world(session, typed, locks=project.cache / "locks", launches=shared and not dry_run)
    processes = max(world.size, processes_here(typed, devices) * typed.nnodes) if shared else 1
    if force and _started_again():
        force = False  # what the first attempt has made is this command's own
    return Context(
        project=project,
        devices=devices,
        world=world,
        processes=processes,
        sharing="shared" if typed.share_gpus else "exclusive",
        command=session.command,
        track=display.track,
        say=display.say,
        mode="force" if force else "dry-run" if dry_run else "normal",
        overrides=overrides,
        prerequisites="refuse" if options.pop("no_prerequisites", False) else "run",
    )


def _started_again() -> bool:
    from pogdiff_cli.engine.launch import restarts

    return restarts() > 0


def _applied(function: F, options: tuple[Callable[[F], F], ...]) -> F:
    for option in reversed(options):
        function = option(function)
    return function
