"""``metrics.jsonl``: one JSON line for each logged step, and the same to TensorBoard where asked for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import made_folder, write_text


class MetricsLog:
    """Appends lines; on resume, lines after the checkpoint's step are taken back first.

    ``as_saved``: what ``extent`` said of it when the checkpoint was made. ``intact`` tells whether that still holds;
    where it does not, the lines that can be read are kept.
    """

    def __init__(
        self, path: Path, *, resumed_at: int, tensorboard: Path | None, as_saved: Mapping[str, Any] | None = None
    ) -> None:
        self._path = path
        made_folder(path.parent)
        self.intact = not resumed_at or as_saved is None or _begins(path, as_saved)
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


def extent(path: Path) -> dict[str, Any]:
    """Length and digest of the log as it is now."""
    content = path.read_bytes() if path.is_file() else b""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _begins(path: Path, as_saved: Mapping[str, Any]) -> bool:
    content = path.read_bytes()[: int(as_saved["bytes"])] if path.is_file() else b""
    return hashlib.sha256(content).hexdigest() == as_saved["sha256"]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a torn last one is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
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
