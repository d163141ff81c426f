"""``pogdiff gc``: what nothing in the project refers to, shown first and then removed.

Only what the program made and would make again, or what a repair has set aside. Results of any run stay, also of
settings that have changed since: ``status`` says the same before and after, and ``run`` has nothing new to do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pogdiff_cli.engine import checkpoint
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.aside import ASIDE, REASONS, inside
from pogdiff_cli.project.atomic import HIDDEN
from pogdiff_cli.project.locks import in_use, project_lock
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.damage import facts_of
from pogdiff_cli.stages.files_check import CACHES
from pogdiff_cli.stages.outputs_check import all_records
from pogdiff_cli.stages.spaces import each_run, spaces

_TRASH = f"{HIDDEN}gc-"
_OLD = 3600.0  # seconds: no file is half-written for so long
#: What a repair may have set aside and nothing can say again; small, and never removed here.
_PRECIOUS = ("names.yaml", "manifest.yaml", "judge.jsonl", "descriptions.jsonl", "human.json", "human.csv")


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something that nothing refers to. ``paths``: its parts, where not all of ``path`` goes."""

    path: str
    reason: str
    bytes: int
    paths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What may go, and why some things stay of which nobody can say whether they are needed."""

    items: tuple[Item, ...]
    kept: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of all items."""
        return sum(item.bytes for item in self.items)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {"items": [asdict(item) for item in self.items], "bytes": self.bytes, "kept": list(self.kept)}


def find(context: Context, *, alone: bool = False) -> Found:
    """Look for it; refuses a project whose manifest cannot tell what is referred to."""
    lost = facts_of(context.project).finding
    if lost is not None:
        raise PogdiffError(
            f"{lost.path}: {lost.detail}. Without it nobody can say what is referred to.",
            hint="Type 'pogdiff doctor --repair' first.",
            exit_code=Exit.MISSING,
        )
    kept: list[str] = []
    items = [*_cache_folders(context, kept), *_damaged_files(context), *_checkpoints(context)]
    if alone or not in_use(context.project.cache / "locks"):
        items += _temporary(context)
    else:
        kept.append("temporary files: another command is at work")
    items += _set_aside(context.project.root)
    return Found(items=tuple(items), kept=tuple(kept))


def remove(context: Context, shown: Found) -> Found:
    """Remove what was shown and is of no use still; nobody else is at work meanwhile (exit 75)."""
    project = context.project
    with project_lock(project.cache / "locks", context.command, mode="alone"):
        agreed = {path for item in shown.items for path in item.paths}
        items = [item for item in find(context, alone=True).items if agreed.issuperset(item.paths)]
        for item in context.track(items, "Removing", len(items)):
            for path in item.paths:
                _away(project.root, project.root / path)
        if inside(project.root, project.root / ASIDE):
            _drop_empty(project.root / ASIDE)
    return Found(items=tuple(items), kept=shown.kept)


def _cache_folders(context: Context, kept: list[str]) -> Iterator[Item]:
    root, cache = context.project.root, context.project.cache
    there = {
        folder.relative_to(cache).as_posix(): folder
        for kind in CACHES
        for folder in sorted((cache / kind).glob("*"))
        if folder.is_dir() and inside(root, folder)
    }
    if not there:
        return
    known = spaces(context, set(there))
    kept += [f"artifacts/cache/{kind}: {reason}" for kind, reason in known.unknown.items()]
    for name, folder in there.items():
        if name not in known.used and name.split("/")[0] not in known.unknown:
            yield _item(root, folder, "cache of settings that no run has any more")


def _damaged_files(context: Context) -> Iterator[Item]:
    for kind in CACHES:
        for path in sorted((context.project.cache / kind).glob("*/*.damaged")):
            if inside(context.project.root, path):
                yield _item(context.project.root, path, "damaged part of a cache")


def _checkpoints(context: Context) -> Iterator[Item]:
    """Beyond ``train.checkpoints_total_limit`` of the run; the ones that stay are whole."""
    limits: dict[str, list[int | None]] = {}
    named = set()
    for name, one in each_run(context):
        train = one.project.config.train
        limits.setdefault(name, []).append(train.checkpoints_total_limit)
        named.add(Path(train.resume_from_checkpoint).name)
    for name, allowed in limits.items():
        folder = context.project.run(name).checkpoints
        numbers = [limit for limit in allowed if limit is not None]
        found = checkpoint.checkpoints(folder) if inside(context.project.root, folder) else []
        if len(numbers) < len(allowed) or len(found) <= max(numbers):
            continue
        if all(checkpoint.is_whole(path) for path in found[-max(numbers) :]):
            for path in found[: -max(numbers)]:
                if path.name not in named:
                    yield _item(context.project.root, path, "older than train.checkpoints_total_limit keeps")


def _temporary(context: Context) -> Iterator[Item]:
    root = context.project.root
    here = list(root.glob(f"{HIDDEN}*"))
    for top in (context.project.artifacts, root / "runs"):
        for folder, folders, files in os.walk(top) if inside(root, top) else ():  # follows no links
            names = [name for name in (*folders, *files) if name.startswith(HIDDEN) or name == "scan.jsonl.new"]
            here += [Path(folder) / name for name in names]
            folders[:] = [name for name in folders if name not in names]
    for path in sorted(here):
        ripe = path.name.startswith(_TRASH) or time.time() - _newest(path) > _OLD
        if ripe and inside(root, path) and not _may_be_put_back(context, path):
            yield _item(root, path, "left half-written by a process that is gone")
    scratch = context.project.cache / "scratch"
    for path in sorted(scratch.glob("*")):
        if inside(root, path):
            yield _item(root, path, "left by a stage that was killed")


def _may_be_put_back(context: Context, path: Path) -> bool:
    """Whether it holds what was being replaced when a process died, and nothing has taken its place."""
    if not (path / "old").exists():
        return False
    outputs = [
        context.project.root / name for _, record in all_records(context.project.manifest()) for name in record.outputs
    ]
    outputs += [context.project.run(name).final for name in context.project.manifest().runs]
    return any(output.parent == path.parent and not output.exists() for output in outputs)


def _set_aside(root: Path) -> Iterator[Item]:
    """Everything but what is precious, one item a repair."""
    for folder in sorted((root / ASIDE).glob("*")) if inside(root, root / ASIDE) else ():
        if not (folder.is_dir() and inside(root, folder)):
            continue
        parts = list(_parts(folder))
        if parts:
            sizes = sum(_size(part) for part in parts)
            names = tuple(part.relative_to(root).as_posix() for part in parts)
            yield Item(path=_relative(root, folder), reason="set aside by a repair", bytes=sizes, paths=names)


def _parts(folder: Path) -> Iterator[Path]:
    """The largest parts of a folder that hold nothing precious; reasons stay as long as anything does."""
    inner = sorted(item for item in folder.iterdir() if item.name != REASONS)
    precious = [item for item in inner if _is_precious(item)]
    if not precious:
        yield folder
        return
    for item in inner:
        if item not in precious:
            yield item
        elif item.is_dir() and not item.is_symlink():
            yield from _parts(item)


def _is_precious(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return any(_is_precious(item) for item in path.iterdir())
    captions = path.name.startswith(("captions", "descriptions")) and path.suffix == ".jsonl"
    return path.name in _PRECIOUS or captions or path.name.startswith("rating_key")


def _away(root: Path, path: Path) -> None:
    """Out of sight in one step, then piece by piece: half of it is never met under its own name."""
    if not (os.path.lexists(path) and inside(root, path)):
        return
    trash = Path(tempfile.mkdtemp(prefix=_TRASH, dir=root))
    try:
        os.replace(path, trash / path.name)
    except OSError:  # another file system below the project
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(trash, ignore_errors=True)


def _drop_empty(folder: Path) -> None:
    for here, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(here).rmdir()


def _item(root: Path, path: Path, reason: str) -> Item:
    name = _relative(root, path)
    return Item(path=name, reason=reason, bytes=_size(path), paths=(name,))


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _each(path: Path) -> Iterable[os.stat_result]:
    yield path.lstat()
    if path.is_dir() and not path.is_symlink():
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                with contextlib.suppress(OSError):
                    yield os.lstat(os.path.join(folder, name))


def _size(path: Path) -> int:
    return sum(status.st_size for status in _each(path))


def _newest(path: Path) -> float:
    times: Sequence[float] = [status.st_mtime for status in _each(path)]
    return max(times)
