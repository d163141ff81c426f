"""``metrics.jsonl``: one JSON line for each logged step, and the same to TensorBoard where asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import write_text


class MetricsLog:
    """Appends lines; on resume, lines after the checkpoint's step are taken back first."""

    def __init__(self, path: Path, *, resumed_at: int, tensorboard: Path | None) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_at] if resumed_at else []
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._board = None if tensorboard is None else _board(tensorboard, resumed_at)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line; JSON has no NaN, so a value that is not finite is written as null."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a torn last one is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            lines.append(entry)
    return lines


def _board(folder: Path, resumed_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as missing:
        raise PogdiffError(
            "train.report_to names tensorboard, which is not installed.",
            hint="pip install 'pogdiff[trackers]'",
            exit_code=Exit.USAGE,
        ) from missing
    return SummaryWriter(str(folder), purge_step=resumed_at + 1)
