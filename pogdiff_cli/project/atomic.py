"""Files and folders that are either whole or absent: write beside, fsync, rename, fsync the parent."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pogdiff_cli.project.disk import explained, full_disk_explained, takes, takes_more_than

__all__ = [
    "HIDDEN",
    "atomic_file",
    "atomic_folder",
    "explained",
    "fsync_path",
    "full_disk_explained",
    "made_folder",
    "put_away",
    "scratch_folder",
    "sweep",
    "sweep_for",
    "write_text",
]

HIDDEN = ".partial-"
_NAMED = 40  # characters of a file's name in that of its half-written one
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def fsync_path(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def made_folder(path: Path) -> Path:
    """Make a folder and those above it; each is known to the disk, for a file is as lost as the folder it is in."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_path(folder.parent)
    return missing[0] if missing else path


@contextlib.contextmanager
def atomic_file(path: Path, *, size: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes its place once the body has ended well.

    ``size``: the bytes that are to be written, where that is known; a full disk is then told with them.
    """
    with explained(path):
        made_folder(path.parent)
        descriptor, name = tempfile.mkstemp(prefix=_hidden(path), suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        with explained(path, lambda: takes(size) if size else takes_more_than(temporary)):
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            fsync_path(temporary)
            os.replace(temporary, path)
            fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, size: int = 0) -> Iterator[Path]:
    """Yield an empty temporary folder; it takes the place of ``path`` (replaced) once the body has ended well."""
    with explained(path):
        made_folder(path.parent)
        temporary = Path(tempfile.mkdtemp(prefix=_hidden(path), dir=path.parent))
    try:
        with explained(path, lambda: takes(size) if size else takes_more_than(temporary)):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for item in sorted(temporary.rglob("*")):
                fsync_path(item)
            fsync_path(temporary)
            _take_place(temporary, path)
            fsync_path(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder while the body runs; what a killed process left there goes. Only under the lock of its stage."""
    shutil.rmtree(path, ignore_errors=True)
    try:
        with explained(path):
            path.mkdir(parents=True)
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def put_away(path: Path) -> None:
    """Delete a folder such that a crash leaves all of it or nothing under its name."""
    if not path.is_dir():
        return
    with explained(path):
        aside = Path(tempfile.mkdtemp(prefix=_hidden(path), dir=path.parent))
        os.replace(path, aside)
        fsync_path(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written; only for a folder that this process holds the lock of."""
    _remove(folder.glob(f"{HIDDEN}*") if folder.is_dir() else ())


def sweep_for(path: Path) -> None:
    """Remove what was left of half-written versions of ``path``, and inside it; only under the lock of its stage."""
    if path.parent.is_dir():
        _remove(found for found in path.parent.iterdir() if found.name.startswith(_hidden(path)))
    if path.is_dir():
        _remove([found for found in path.rglob(f"{HIDDEN}*") if found.exists()])


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8)."""
    content = text.encode("utf-8")
    with atomic_file(path, size=len(content)) as temporary:
        temporary.write_bytes(content)


def _hidden(path: Path) -> str:
    # the name of what it is to be, so that only the holder of that lock takes it for a leftover
    return f"{HIDDEN}{path.name[:_NAMED]}-"


def _remove(paths: Iterator[Path] | tuple[Path, ...] | list[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _take_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.replace(temporary, path)
        return
    if _exchanged(temporary, path):
        return  # the old one now has the temporary name, and goes with it
    aside = Path(tempfile.mkdtemp(prefix=_hidden(path), dir=path.parent)) / "old"
    try:
        os.replace(path, aside)
        os.replace(temporary, path)
    except BaseException:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def _exchanged(first: Path, second: Path) -> bool:
    """Linux: both names change places at once, so that there is no moment without the folder; False elsewhere."""
    rename = _renameat2()
    if rename is None:
        return False
    done = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(done == 0)  # network file systems and old kernels know no exchange


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        found = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    found.restype = ctypes.c_int
    return found  # type: ignore[no-any-return]


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
