"""A disk that is full, read-only or not ours, said in a sentence: what could not be written, and what it takes."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pogdiff_cli.errors import PogdiffError

Takes = Callable[[], str]
_FULL = {
    errno.ENOSPC: ("The disk is full", "Free some space"),
    errno.EDQUOT: ("The disk is full", "Free some space, or ask for a larger quota,"),
    errno.EFBIG: ("A file is larger than may be written here", "Raise the limit (ulimit -f)"),
}
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_FAILED = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN)
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy's words, without a number


def _unknown() -> str:
    return ""


def takes(size: int) -> str:
    """How much is to be written, as a sentence."""
    return f" It takes {in_words(size)}."


def takes_more_than(written: Path) -> str:
    """The same where only what has been written so far is known: a file or a folder."""
    with contextlib.suppress(OSError):
        files = [path for path in written.rglob("*") if path.is_file()] if written.is_dir() else [written]
        size = sum(path.stat().st_size for path in files)
        return f" It takes more than {in_words(size)}." if size else ""
    return ""


@contextlib.contextmanager
def explained(path: Path, need: Takes = _unknown) -> Iterator[None]:
    """Turn a full disk or a read-only folder into a message that says what to do; ``need``: how much it takes."""
    try:
        with full_disk_explained(path, need):
            yield
    except OSError as problem:
        said = no_permission(problem, path)
        if said is None:
            raise
        raise said from problem


@contextlib.contextmanager
def full_disk_explained(path: Path, need: Takes = _unknown) -> Iterator[None]:
    """Turn a full disk, whichever library met it, into a message that says what to do."""
    try:
        yield
    except PogdiffError:
        raise
    except Exception as problem:
        said = no_room(problem, path, need())
        if said is None:
            raise
        raise said from problem


def no_room(problem: BaseException, path: Path, need: str = "") -> PogdiffError | None:
    """The message for a full disk; None for any other failure."""
    number = _number(problem)
    if number not in _FULL:
        return None
    what, remedy = _FULL[number]
    return PogdiffError(
        f"{what}: {path} could not be written; what was there is kept.{need}{_room(path, number)}",
        hint=f"{remedy} and type the same command again.",
    )


def no_permission(problem: OSError, path: Path) -> PogdiffError | None:
    """The message for a folder that may not be written; None for any other failure."""
    if problem.errno not in _FORBIDDEN:
        return None
    if problem.errno == errno.EROFS:
        return PogdiffError(
            f"No permission to write {path}: the file system at {mount_of(path)} is read-only.",
            hint="Mount it for writing, or choose another folder with -C.",
        )
    return PogdiffError(
        f"No permission to write {path}.", hint="Check who owns that folder, or choose another with -C."
    )


def at_last(problem: BaseException) -> PogdiffError | None:
    """For the end of the program: what the disk has refused wherever it was; None where it was not the disk."""
    named = getattr(problem, "filename", None)
    path = Path(os.fsdecode(named)) if isinstance(named, (str, bytes)) else Path.cwd()
    said = no_room(problem, path)
    if said is not None or not isinstance(problem, OSError):
        return said
    if problem.errno in _FAILED:
        return PogdiffError(
            f"The file system at {mount_of(path)} failed at {path}: {problem.strerror}.",
            hint="Check the disk or the connection to it, and type the same command again.",
        )
    return no_permission(problem, path) if named is not None else None


def reserve(path: Path) -> None:
    """Give a sparse file its blocks: where there are none, a memory map would end the process without a word."""
    size = path.stat().st_size
    with explained(path, lambda: takes(size)):
        descriptor = os.open(path, os.O_RDWR)
        try:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
        except OSError as problem:
            if problem.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        finally:
            os.close(descriptor)


def mount_of(path: Path) -> Path:
    """Where the file system begins that ``path`` lies on, or would lie on."""
    place = _existing(path)
    while not place.is_mount() and place != place.parent:
        place = place.parent
    return place


def in_words(size: int) -> str:
    """``900 bytes``, ``12 kB``, ``3.4 MB``, ``1.2 GB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB" if size >= 10_000 else f"{size} bytes"


def _number(problem: BaseException) -> int | None:
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem.errno
    text = str(problem)
    if isinstance(problem, OSError) and _SHORT_WRITE.search(text):
        return errno.ENOSPC
    # safetensors knows no errno, only the system's words
    return next((number for number in _FULL if os.strerror(number) in text), None)


def _room(path: Path, number: int) -> str:
    if number == errno.EFBIG:
        return ""
    if number == errno.EDQUOT:
        return f" Your quota on the file system at {mount_of(path)} is used up."
    try:
        state = os.statvfs(_existing(path))
    except OSError:
        return ""
    if state.f_files and not state.f_favail:
        return f" The file system at {mount_of(path)} has no room for another file."
    return f" The file system at {mount_of(path)} has {in_words(state.f_bavail * state.f_frsize)} left."


def _existing(path: Path) -> Path:
    place = Path(os.path.abspath(path))
    while not place.exists() and place != place.parent:
        place = place.parent
    return place
