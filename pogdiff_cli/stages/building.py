"""A new project appears whole: built in a hidden folder inside its own, and moved out with its configuration last.

Its own folder may be there already, empty and somebody's current one, so that nothing can be renamed over it. Until
``pogdiff.yaml`` is moved the folder is no project. A rerun after a crash starts again while nothing has been moved, and
finishes the moving afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import explained, fsync_path, write_text
from pogdiff_cli.project.layout import BUILDING_NAME, CONFIG_NAME

_CONTENT = "content"
_PLAN = "plan.json"  # written when the content is whole: how it was asked for, and the names that are moved


def build(root: Path, asked: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
    """Make ``root`` hold what ``fill`` writes into the folder that it is given; all of it or, at first, nothing."""
    staging = root / BUILDING_NAME
    with explained(root), _made(root), _alone(root):
        refuse_occupied(root, asked)
        if _plan(root, asked) is None:
            shutil.rmtree(staging, ignore_errors=True)
            (staging / _CONTENT).mkdir(parents=True)
            try:
                fill(staging / _CONTENT)
                _seal(staging, asked)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
        _move_out(staging, root)


def refuse_occupied(root: Path, asked: Mapping[str, Any]) -> None:
    """Exit 2 where a project, or anything that an interrupted attempt with the same wishes did not make, is there."""
    if (root / CONFIG_NAME).exists():
        raise PogdiffError(f"{root} is a pogdiff project already.", hint="Choose another path.", exit_code=Exit.USAGE)
    if not os.path.lexists(root):
        return
    ours = {BUILDING_NAME, *(_plan(root, asked) or ())}
    found = {item.name for item in root.iterdir()} if root.is_dir() else {root.name}
    if found <= ours:
        return
    begun = (root / BUILDING_NAME).is_dir() if root.is_dir() else False
    raise PogdiffError(
        f"{root} exists and is not an empty folder.",
        hint="An interrupted 'pogdiff init' left it so: type that command again as it was, or choose another path."
        if begun
        else "Choose another path; point --images at your pictures instead of making the project among them.",
        exit_code=Exit.USAGE,
    )


def _plan(root: Path, asked: Mapping[str, Any]) -> list[str] | None:
    """The names that an interrupted attempt with the same wishes was moving; None where it had not come so far."""
    try:
        plan = json.loads((root / BUILDING_NAME / _PLAN).read_text(encoding="utf-8"))
        return [str(name) for name in plan["names"]] if plan["asked"] == dict(asked) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seal(staging: Path, asked: Mapping[str, Any]) -> None:
    content = staging / _CONTENT
    for item in sorted(content.rglob("*")):
        if not item.is_symlink():
            fsync_path(item)
    fsync_path(content)
    names = sorted((item.name for item in content.iterdir()), key=lambda name: (name == CONFIG_NAME, name))
    write_text(staging / _PLAN, json.dumps({"asked": dict(asked), "names": names}))


def _move_out(staging: Path, root: Path) -> None:
    for name in json.loads((staging / _PLAN).read_text(encoding="utf-8"))["names"]:
        source = staging / _CONTENT / name
        if not source.exists():
            continue  # moved by an attempt that was interrupted
        if os.path.lexists(root / name):
            raise PogdiffError(f"{root / name} is in the way.", hint="Move it elsewhere.", exit_code=Exit.USAGE)
        if name == CONFIG_NAME:
            fsync_path(root)  # with its configuration it is a project: all else is there for good
        os.replace(source, root / name)
    fsync_path(root)
    shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _made(root: Path) -> Iterator[None]:
    """The folder is there while the body runs; one that was made for it goes again if the body fails."""
    new = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):  # not empty: it is not ours alone
                path.rmdir()
        raise


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One ``init`` a folder at a time; the kernel lets go of it when the process is gone."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PogdiffError(f"Another 'pogdiff init' is making {root}.", exit_code=Exit.LOCKED) from None
        yield
    finally:
        os.close(descriptor)
