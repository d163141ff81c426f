"""Every image decoded once before anything is spent: readable or not, how large, which bytes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.data.images import BadImage, decode_bytes, read_bytes
from pogdiff_cli.data.records import Records
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.atomic import atomic_file

_SCHEMA = 2  # of a cache line: raise it when decoding changes its mind about some file
_GROUP = 16  # images that a thread takes at once
_CHUNK = 512  # images in flight: bounds memory whatever the number of records


@dataclass(frozen=True, kw_only=True)
class Problem:
    """An image that cannot be used."""

    file_name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that was done to an image so that it can be used."""

    file_name: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What the images of n records are; row i speaks of record i."""

    ok: NDArray[np.bool_]  # (n,)
    sha256: list[str]  # of the file's bytes, "" for an unusable one
    sizes: NDArray[np.int64]  # (n, 2) width, height after turning upright; 0 for an unusable one
    problems: list[Problem]
    notes: list[Note]


State = tuple[int, int, int, int]
"""Size, mtime and ctime in ns, inode: a file in the same state is not read again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """What is known of one file in one state of it."""

    file_name: str
    state: State
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    reason: str = ""  # "" for a usable image
    notes: tuple[str, ...] = ()
    lasting: bool = True  # False where the file could not be read at all: that may pass

    def line(self) -> str:
        values = {key: getattr(self, key) for key in ("file_name", "state", "sha256", "size", "reason", "notes")}
        return json.dumps({"schema": _SCHEMA, **values, "check": _check(values)}, ensure_ascii=False) + "\n"


def scan(records: Records, images_root: Path, *, cache: Path | None = None, track: Track = untracked) -> Scan:
    """Decode every image completely; ``cache`` (JSONL) spares files of the same size, time and inode.

    The cache grows as the scan proceeds, so that an interrupted one goes on where it stopped.
    """
    known = _read_cache(cache)
    entries: list[_Entry] = []
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        names = iter(records.file_names)
        found = _in_chunks(pool, names, images_root, known, cache)
        entries.extend(track(found, "Reading images", len(records)))
    _compact_cache(cache, entries, known)
    return Scan(
        ok=np.array([not entry.reason for entry in entries], dtype=np.bool_),
        sha256=["" if entry.reason else entry.sha256 for entry in entries],
        sizes=np.array([entry.size for entry in entries], dtype=np.int64).reshape(-1, 2),
        problems=[Problem(file_name=e.file_name, reason=e.reason) for e in entries if e.reason],
        notes=[Note(file_name=e.file_name, note=note) for e in entries for note in e.notes],
    )


def refuse_too_many_problems(found: Scan, *, at_most: float) -> None:
    """Fail where more than the share ``at_most`` of the images, or all of them, are unusable."""
    share = len(found.problems) / max(1, len(found.ok))
    if share <= at_most and found.ok.any():
        return
    shown = "; ".join(f"{problem.file_name}: {problem.reason}" for problem in found.problems[:5])
    raise PogdiffError(
        f"{len(found.problems)} of {len(found.ok)} images cannot be used ({shown}).",
        hint="Mend or remove them, or check data.images.",
        exit_code=Exit.DATA,
    )


def digest_of(records: Records, found: Scan) -> str:
    """SHA-256 of (name, image digest, identity, text, split, attributes) of the usable records, sorted."""
    lines = []
    for row in np.flatnonzero(found.ok):
        split = "heldout" if records.heldout[row] else "train"
        attributes = {key: column[row] for key, column in sorted(records.attributes.items()) if column[row]}
        lines.append(
            json.dumps(
                [
                    records.file_names[row],
                    found.sha256[row],
                    records.name_of(int(row)),
                    records.texts[row],
                    split,
                    attributes,
                ]
            )
        )
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _in_chunks(
    pool: ThreadPoolExecutor, names: Iterator[str], root: Path, known: dict[str, _Entry], cache: Path | None
) -> Iterator[_Entry]:
    while chunk := list(islice(names, _CHUNK)):
        # a few at once: handing over a name costs more than looking at a file that is known
        groups = [chunk[start : start + _GROUP] for start in range(0, len(chunk), _GROUP)]
        examined = pool.map(lambda group: [_examine(root, name, known.get(name)) for name in group], groups)
        entries = [entry for group in examined for entry in group]
        fresh = [entry for entry in entries if entry.lasting and entry is not known.get(entry.file_name)]
        if cache is not None and fresh:
            with _kept_where_possible(), cache.open("a", encoding="utf-8") as file:
                file.writelines(entry.line() for entry in fresh)
        yield from entries


def state_of(path: str | Path) -> State:
    """The state of a file; the change time too: a copy may keep its modification time, or a clock be set back."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def remembered(cache: Path) -> dict[str, tuple[State, str]]:
    """What a scan's cache says of each file: its state, and the SHA-256 of what was read then."""
    try:
        lines = cache.read_bytes().splitlines()
    except OSError:
        return {}
    entries = [entry for entry in map(_entry_of, lines) if entry is not None and entry.sha256]
    return {entry.file_name: (entry.state, entry.sha256) for entry in entries}


def _examine(root: Path, name: str, known: _Entry | None) -> _Entry:
    try:
        state = state_of(os.path.join(root, name))
        if known is not None and known.state == state:
            return known
        path = root / name
        data = read_bytes(path)
    except (OSError, BadImage) as error:
        reason = str(error) if isinstance(error, BadImage) else f"cannot be read: {error.strerror}"
        return _Entry(file_name=name, state=(0, 0, 0, 0), reason=reason, lasting=False)
    digest = hashlib.sha256(data).hexdigest()
    try:
        decoded = decode_bytes(data, path.name)
    except BadImage as error:
        return _Entry(file_name=name, state=state, sha256=digest, reason=str(error))
    return _Entry(file_name=name, state=state, sha256=digest, size=decoded.image.size, notes=decoded.notes)


def _read_cache(cache: Path | None) -> dict[str, _Entry]:
    """Entries by file name, the last one said of each; a damaged line is passed over."""
    if cache is None or not cache.exists():
        return {}
    known = {}
    raw = b"\n"
    with cache.open("rb") as file:
        for raw in file:
            entry = _entry_of(raw)
            if entry is not None:
                known[entry.file_name] = entry
    if not raw.endswith(b"\n"):
        with _kept_where_possible(), cache.open("ab") as file:
            file.write(b"\n")  # what is appended next must not join the torn line
    return known


def _check(values: dict[str, Any]) -> str:
    """Tells a line that was written from one in which a bit has flipped since."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _entry_of(raw: bytes) -> _Entry | None:
    try:
        values: dict[str, Any] = json.loads(raw)
        size, mtime, ctime, inode = (int(number) for number in values["state"])
        width, height = (int(number) for number in values["size"])
        texts = [values[key] for key in ("file_name", "sha256", "reason")] + list(values["notes"])
        as_written = values.pop("schema") == _SCHEMA and values.pop("check") == _check(values)
        if not as_written or not all(isinstance(text, str) for text in texts):
            return None
        return _Entry(
            file_name=texts[0],
            state=(size, mtime, ctime, inode),
            sha256=texts[1],
            size=(width, height),
            reason=texts[2],
            notes=tuple(texts[3:]),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _compact_cache(cache: Path | None, entries: list[_Entry], known: dict[str, _Entry]) -> None:
    """Rewrite the cache when most of what it holds is of the past."""
    lasting = [entry for entry in entries if entry.lasting]
    if cache is None or len(known) <= 2 * len(lasting):
        return
    with contextlib.suppress(PogdiffError), atomic_file(cache) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(entry.line() for entry in lasting)


@contextlib.contextmanager
def _kept_where_possible() -> Iterator[None]:
    """On a disk that is full or read-only the scan goes on: it only takes as long the next time."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
