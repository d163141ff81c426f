"""Several processes for one command: torch's elastic launcher starts them, watches them and starts them again."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pogdiff_cli.engine.world import LAUNCH_FOLDER
from pogdiff_cli.errors import Exit, PogdiffError

# as "-m pogdiff_cli", but for the current folder, from which Python would import whatever a stranger's project holds
_WORKER = (
    f"import sys; sys.path[:1] = [{str(Path(__file__).parents[2])!r}]; "
    "import runpy; runpy.run_module('pogdiff_cli', run_name='__main__', alter_sys=True)"
)
_PATIENCE = 5.0  # seconds that the others have to end once one has failed


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How many processes, on how many machines, how often they may be started again."""

    processes: int
    nnodes: int = 1
    rdzv_endpoint: str | None = None
    max_restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one worker ended, as it wrote it down itself."""

    status: int
    message: str = ""
    hint: str | None = None


def launch(arguments: Sequence[str], plan: Launch) -> int:
    """Run ``pogdiff ARGUMENTS`` in every process; the exit status of the whole, or a PogdiffError that says why."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # an attempt must not read addresses of the one before
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a store that goes is said in our words
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // plan.processes)))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pogdiff-")))
        os.environ[LAUNCH_FOLDER] = str(folder)
        stack.callback(os.environ.pop, LAUNCH_FOLDER, None)
        stack.enter_context(_signals_passed_on(folder))
        stack.enter_context(_silent_ones_ended(folder))
        config = LaunchConfig(
            min_nodes=plan.nnodes,
            max_nodes=plan.nnodes,
            nproc_per_node=plan.processes,
            run_id=os.environ.get("SLURM_JOB_ID", "pogdiff") if plan.rdzv_endpoint else f"pogdiff-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint=plan.rdzv_endpoint or "localhost:0",
            local_addr=None if plan.rdzv_endpoint else "localhost",
            max_restarts=plan.max_restarts,
            monitor_interval=0.1,
            signals_to_handle="SIGQUIT",  # the others are passed on, so that workers save before they end
        )
        try:
            elastic_launch(config, sys.executable)("-c", _WORKER, *arguments)
        except ChildFailedError as failed:
            return _failure(folder, failed.failures, plan)
        return max((ending.status for ending in _endings(folder).values()), default=int(Exit.OK))


def is_worker() -> bool:
    """True in a process that ``launch`` started."""
    return LAUNCH_FOLDER in os.environ


def begin_worker() -> Ending | None:
    """Leave this worker's number where the launcher finds it.

    After a restart: how the first attempt ended, where that was a mistake of the user's. Another attempt would
    end in the same way.
    """
    folder, rank = Path(os.environ[LAUNCH_FOLDER]), _local_rank()
    for old in (f"lost-{rank}", "silent"):
        (folder / old).unlink(missing_ok=True)
    # the number first, then the question whether to stop: no signal falls between the two
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    stopped = _stopped(folder)
    return Ending(status=stopped) if stopped else _endings(folder).get(rank)


def end_worker(ending: Ending) -> None:
    """Tell the launcher how this worker ended."""
    path = Path(os.environ[LAUNCH_FOLDER]) / f"ending-{_local_rank()}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(ending.__dict__))
    partial.replace(path)


def lost_the_others(problem: PogdiffError) -> None:
    """Tell the launcher that this worker ends because another is gone or silent: that one has to go, too."""
    path = Path(os.environ[LAUNCH_FOLDER]) / f"lost-{_local_rank()}"
    path.write_text(f"{os.getpid()}\n{problem.message}\n{problem.hint or ''}", encoding="utf-8")


def restarts() -> int:
    """How often the launcher has started this worker again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _endings(folder: Path) -> dict[int, Ending]:
    return {
        int(path.stem.split("-")[1]): Ending(**json.loads(path.read_text())) for path in folder.glob("ending-*.json")
    }


def _stopped(folder: Path) -> int | None:
    """128 plus the number of the signal that asked the launcher to end; None where none did."""
    path = folder / "stop"
    return 128 + int(path.read_text()) if path.is_file() else None


def _failure(folder: Path, failures: dict[int, Any], plan: Launch) -> int:
    """The exit status where a worker has told what is wrong; else an error that names the worker and its end."""
    for ending in _endings(folder).values():
        if ending.message:
            raise PogdiffError(ending.message, hint=ending.hint, exit_code=Exit(ending.status))
    stopped = _stopped(folder)
    if stopped:
        return stopped
    silent = folder / "silent"
    if silent.is_file():
        _, message, hint = silent.read_text(encoding="utf-8").split("\n", 2)
        raise PogdiffError(message, hint=hint)
    dead = sorted(failures.items(), key=lambda item: (item[1].exitcode not in _KILLED, item[1].timestamp))
    rank, first = dead[0]
    if first.exitcode >= 0:  # it has shown what happened itself
        return first.exitcode or int(Exit.FAILURE)
    name = signal.Signals(-first.exitcode).name
    again = f", also after {plan.max_restarts} restarts" if plan.max_restarts else ""
    raise PogdiffError(
        f"Process {rank} was ended by {name}{again}; the others were stopped.",
        hint="SIGKILL is often the system's answer to a lack of memory. "
        "Type the same command again to go on from the last whole checkpoint, or give --max-restarts.",
    )


_KILLED = {-int(number) for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)}


@contextmanager
def _signals_passed_on(folder: Path) -> Iterator[None]:
    """SIGINT, SIGTERM, SIGHUP and SIGUSR1 go to the workers, which finish their step, save and end."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        if number != signal.SIGUSR1:
            (folder / "stop").write_text(str(int(number)))
        for path in folder.glob("pid-*"):
            process = _number(path)
            if process is not None:
                with suppress(OSError):
                    os.kill(process, number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _silent_ones_ended(folder: Path) -> Iterator[None]:
    """A process that hangs does not hear the launcher's SIGTERM either: end it soon after another has given it up."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            notes = [note for note in folder.glob("lost-*") if time.time() - _written(note) > _PATIENCE]
            if notes:
                _kill_the_rest(folder, notes)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _kill_the_rest(folder: Path, notes: Sequence[Path]) -> None:
    """End the workers that those who left ``notes`` have waited for in vain, not those of a newer attempt."""
    gave_up = {_number(note) for note in notes}
    asked = max(_written(note) for note in notes)
    silent = False
    for path in folder.glob("pid-*"):
        number = _number(path)
        if number is not None and number not in gave_up and _written(path) < asked:
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)
                silent = True
    if silent:
        (folder / "silent").write_text(notes[0].read_text(encoding="utf-8"), encoding="utf-8")
    for note in notes:
        note.unlink(missing_ok=True)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()  # gone meanwhile: nothing to act upon


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8").split("\n", 1)[0])
    except (OSError, ValueError):
        return None
