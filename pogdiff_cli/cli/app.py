"""The executable: one group, one place where failures become messages and exit statuses."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import click

from pogdiff_cli import __version__
from pogdiff_cli.cli import compare_command, project_commands, stage_commands
from pogdiff_cli.cli.export_command import export
from pogdiff_cli.cli.options import Session
from pogdiff_cli.cli.surroundings import ended_in_order, flushed, open_what_is_closed
from pogdiff_cli.errors import Exit, PogdiffError, Stopped
from pogdiff_cli.project.disk import at_last


class _Group(click.Group):
    """Suggests the nearest command for a misspelt one, and lists commands in the order of the road."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as problem:
            import difflib

            near = difflib.get_close_matches(args[0], list(self.commands), n=1)
            if not near:
                raise
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean '{near[0]}'?", ctx) from problem


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pogdiff")
def cli() -> None:
    """Fine-tune text-to-image diffusion models on long-tailed data, and prove that the tail got better.

    Start with:  pogdiff init myproj  &&  pogdiff run -C myproj
    """


for command in (
    *project_commands.BEFORE,
    *stage_commands.COMMANDS,
    export,
    compare_command.compare,
    *project_commands.AFTER,
):
    cli.add_command(command)


#: Libraries log and draw bars on their own; the display speaks for all.
_QUIET_LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
}

#: Set in processes that another pogdiff started (engine/launch.py, which is loaded only there).
_WORKER = "POGDIFF_LAUNCH_FOLDER"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    open_what_is_closed()
    with ended_in_order():
        status = _status(list(sys.argv[1:] if arguments is None else arguments))
    if flushed() is not None:
        status = status or int(Exit.FAILURE)
    sys.exit(status)


def _status(arguments: list[str]) -> int:
    session = Session(command="pogdiff " + shlex.join(arguments), arguments=tuple(arguments))
    if _WORKER in os.environ:
        from pogdiff_cli.cli.worker import run_worker

        return run_worker(lambda: _outcome(session, arguments))
    return _outcome(session, arguments)


def _outcome(session: Session, arguments: list[str]) -> int:
    for variable, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(variable, value)
    try:
        outcome: Any = cli.main(arguments, prog_name="pogdiff", standalone_mode=False, obj=session)
        return int(outcome) if isinstance(outcome, int) else int(Exit.OK)
    except SystemExit as ending:  # the shell's completion ends the program by itself
        return ending.code if isinstance(ending.code, int) else int(Exit.FAILURE if ending.code else Exit.OK)
    except BaseException as problem:  # the last place that can say what happened
        return int(_ended(session, problem))  # negative: see worker.ended
    finally:
        session.close()


def _ended(session: Session, problem: BaseException) -> int:
    """What a failure is to the user: a message and an exit status."""
    if isinstance(problem, (PogdiffError, Stopped)) and _WORKER in os.environ:
        from pogdiff_cli.cli.worker import ended

        return ended(session, problem)
    if isinstance(problem, (click.exceptions.Exit, click.ClickException)):
        return _ended_by_click(session, problem)
    if isinstance(problem, PogdiffError):
        session.display.error(problem)
        return problem.exit_code
    if isinstance(problem, (KeyboardInterrupt, click.Abort, Stopped)):
        return _ended_by_signal(session, problem)
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        hint = "Lower the batch_size of that section, for instance --set sample.batch_size=1."
        session.display.error(PogdiffError("Out of memory.", hint=hint, exit_code=Exit.MEMORY))
        return Exit.MEMORY
    refused = at_last(problem)
    if refused is not None:
        session.display.error(refused)
    elif not isinstance(problem, BrokenPipeError):
        session.display.crash(problem)
    return Exit.FAILURE


def _ended_by_signal(session: Session, problem: BaseException) -> int:
    if not isinstance(problem, Stopped):
        session.display.say("Interrupted; type the same command again to go on.")
        return Exit.INTERRUPTED
    at = "" if problem.step is None else f" at step {problem.step}"
    session.display.say(f"Stopped{at}; type the same command again to go on.")
    return problem.exit_code


def _ended_by_click(session: Session, problem: click.exceptions.Exit | click.ClickException) -> int:
    if isinstance(problem, click.exceptions.Exit):
        return int(problem.exit_code)
    said = io.StringIO()
    problem.show(file=said)
    session.display.refusal(said.getvalue())
    return Exit.USAGE
