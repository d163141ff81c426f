"""What is damaged or left over is moved under ``set-aside/``, with its path and the reason; never deleted."""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path

from pogdiff_cli.project.atomic import explained, fsync_path

ASIDE = "set-aside"
REASONS = "REASONS.txt"


class Aside:
    """One folder for one command, made when the first thing is moved there."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder: Path | None = None

    @property
    def name(self) -> str | None:
        """The folder's path in the project; None while nothing was moved."""
        return None if self._folder is None else self._folder.relative_to(self._root).as_posix()

    def take(self, path: Path, why: str) -> None:
        """Move a file or folder of the project there, at once and as it is. The reason is on the disk before."""
        target = self._place(path, why)
        with explained(target):
            os.replace(path, target)
            fsync_path(target.parent)
            fsync_path(path.parent)

    def copy(self, path: Path, why: str) -> None:
        """Keep a copy of a file there."""
        shutil.copy2(path, self._place(path, why))

    def _place(self, path: Path, why: str) -> Path:
        with explained(self._root / ASIDE):
            folder = self._made()
            target = folder / path.relative_to(self._root)
            target.parent.mkdir(parents=True, exist_ok=True)
            with (folder / REASONS).open("a", encoding="utf-8") as file:
                file.write(f"{path.relative_to(self._root).as_posix()}: {why}\n")
                file.flush()
                os.fsync(file.fileno())
        return target

    def _made(self) -> Path:
        if self._folder is None:
            now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H-%M-%SZ")
            number = 1
            while True:  # clocks go back, too
                folder = self._root / ASIDE / (now if number == 1 else f"{now}-{number}")
                try:
                    folder.mkdir(parents=True)
                    break
                except FileExistsError:
                    number += 1
            self._folder = folder
        return self._folder


def inside(root: Path, path: Path) -> bool:
    """Whether a path leads to something in the project, and not through a link to elsewhere."""
    return not path.is_symlink() and path.resolve().is_relative_to(root.resolve())
