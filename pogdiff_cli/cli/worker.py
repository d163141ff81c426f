"""A process that another pogdiff started: what it tells the launcher, which alone speaks to the user about failures.

A worker that ends with a status other than 0 is a failure to the launcher: it stops the others and may start all
again. An end that is meant (a safe stop, a gate) is therefore written down, and the process ends with 0.
"""

from __future__ import annotations

from collections.abc import Callable

from pogdiff_cli.cli.options import Session
from pogdiff_cli.engine.launch import Ending, begin_worker, end_worker, lost_the_others
from pogdiff_cli.engine.world import RankLostError
from pogdiff_cli.errors import Exit, PogdiffError, Stopped


def run_worker(work: Callable[[], int]) -> int:
    """Do the command's work, unless it is known how it ends."""
    known = begin_worker()
    if known is not None:
        return known.status
    status = work()
    if status > 0 and status != Exit.FAILURE:
        end_worker(Ending(status=status))
        return 0
    return abs(status)


def ended(session: Session, problem: PogdiffError | Stopped) -> int:
    """Tell the launcher; negative where the process itself has to fail, so that the others are stopped."""
    if isinstance(problem, Stopped):
        at = "" if problem.step is None else f" at step {problem.step}"
        session.display.say(f"Stopped{at}; type the same command again to go on.")
        return problem.exit_code
    if isinstance(problem, RankLostError):  # may pass: no last word
        lost_the_others(problem)
        return -Exit.FAILURE
    end_worker(Ending(status=int(problem.exit_code), message=problem.message, hint=problem.hint))
    return -problem.exit_code
