"""Which checkpoint a run goes on from, and what it writes down of itself to be gone on with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pogdiff_cli.engine import checkpoint
from pogdiff_cli.engine.metrics_log import extent
from pogdiff_cli.engine.state import State
from pogdiff_cli.engine.world import World
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import fsync_path


@dataclass(frozen=True, kw_only=True)
class Resuming:
    """The checkpoints of one run. ``fingerprint`` names its settings: those of others are not resumed."""

    folder: Path
    fingerprint: str
    global_batch: int
    keep: int | None
    world: World
    metrics: Path

    def find(self, wanted: str) -> checkpoint.Snapshot | None:
        """``latest``, ``none`` or a checkpoint's name -> what to go on from; None: a fresh start."""
        if wanted == "none":
            return None
        path = self._latest() if wanted == "latest" else Path(wanted)
        if path is None:
            return None
        if wanted != "latest" and not path.is_absolute():
            path = self.folder / path
        snapshot = checkpoint.load(path)
        if snapshot.state.get("fingerprint") != self.fingerprint:
            if wanted == "latest":
                return None
            raise PogdiffError(
                f"{path.name} was made with other settings than this run has.",
                hint="Give the run another name with --name.",
                exit_code=Exit.MISSING,
            )
        return snapshot if self._same_batch(snapshot) else None

    def save(self, state: State, *, step: int, skipped: int) -> None:
        """The main process writes, and all go on when it is whole."""
        if self.world.main and self.metrics.is_file():
            fsync_path(self.metrics)  # a checkpoint must not outlive the lines of the steps before it
        facts = {
            "step": step,
            "fingerprint": self.fingerprint,
            "skipped": skipped,
            "global_batch": self.global_batch,
            "processes": self.world.size,
            "log": extent(self.metrics) if self.world.main else None,
        }
        snapshot = state.snapshot(facts, self.world)
        if self.world.main:
            checkpoint.save(self.folder, snapshot, keep=self.keep)
        self.world.together()

    def _same_batch(self, snapshot: checkpoint.Snapshot) -> bool:
        """Whether the checkpoint's global batch is this run's. Another number of processes may be an oversight."""
        theirs, ours = int(snapshot.state["global_batch"]), self.global_batch
        processes = int(snapshot.state["processes"])
        if theirs != ours and processes != self.world.size:
            raise PogdiffError(
                f"The checkpoints of this run have a global batch of {theirs} ({processes} processes); "
                f"here it would be {ours} ({self.world.size}).",
                hint=f"Start {processes} processes as before; or choose train.train_batch_size and "
                f"train.gradient_accumulation_steps such that the global batch is {theirs}; or --force a new start.",
                exit_code=Exit.USAGE,
            )
        return theirs == ours

    def _latest(self) -> Path | None:
        """The newest whole checkpoint as the main process sees it."""
        found = self.world.agreed(lambda: _text(checkpoint.latest_whole(self.folder)))
        return None if found is None else Path(found)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
