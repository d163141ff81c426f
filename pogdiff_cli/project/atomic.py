"""Files and folders that are either whole or absent: write beside, fsync, rename, fsync the parent."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pogdiff_cli.errors import PogdiffError

HIDDEN = ".partial-"


def fsync_path(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes its place once the body has ended well."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=HIDDEN, suffix=path.suffix, dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        with explained(path):
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            fsync_path(temporary)
            os.replace(temporary, path)
            fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it takes the place of ``path`` (replaced) once the body has ended well."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=HIDDEN, dir=path.parent))
    try:
        with explained(path):
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


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written; only for a folder that this process holds the lock of."""
    for path in folder.glob(f"{HIDDEN}*") if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8)."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into a message that says what to do."""
    try:
        with full_disk_explained(path):
            yield
    except OSError as problem:
        if problem.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise PogdiffError(
                f"No permission to write {path}.", hint="Check who owns that folder, or choose another with -C."
            ) from problem
        raise


@contextlib.contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turn a full disk, whichever library met it, into a message that says what to do."""
    try:
        yield
    except PogdiffError:
        raise
    except Exception as problem:
        number = problem.errno if isinstance(problem, OSError) else None
        # safetensors knows no errno, only the system's words
        met = [n for n in _NO_ROOM if number == n or (number is None and os.strerror(n) in str(problem))]
        if not met:
            raise
        what, remedy = _NO_ROOM[met[0]]
        raise PogdiffError(
            f"{what}: {path} could not be written; what was there is kept.",
            hint=f"{remedy} and type the same command again.",
        ) from problem


_NO_ROOM = {
    errno.ENOSPC: ("The disk is full", "Free some space"),
    errno.EDQUOT: ("The disk is full", "Free some space"),
    errno.EFBIG: ("A file is larger than may be written here", "Raise the limit (ulimit -f)"),
}


def _take_place(temporary: Path, path: Path) -> None:
    if path.exists():
        aside = Path(tempfile.mkdtemp(prefix=HIDDEN, dir=path.parent)) / "old"
        os.replace(path, aside)
        try:
            os.replace(temporary, path)
        except OSError:
            os.replace(aside, path)
            raise
        finally:
            shutil.rmtree(aside.parent, ignore_errors=True)
    else:
        os.replace(temporary, path)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
