"""sha256 of values, files and folders; what has not changed on disk is not read twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.project.atomic import HIDDEN, write_text

PREFIX = "sha256:"
_BLOCK = 1 << 20


def digest_value(value: Any) -> str:
    """Digest of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return PREFIX + hashlib.sha256(text.encode()).hexdigest()


def digest_bytes(path: Path) -> str:
    """Digest of one file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):  # Python 3.10 has no hashlib.file_digest
            digest.update(block)
    return PREFIX + digest.hexdigest()


class Digests:
    """Digests of files and folders, remembered by size, change time and inode in one JSON file.

    Where ``trust`` is "nothing" every file is read once by this object, whatever is remembered of it.
    """

    def __init__(
        self, cache: Path | None = None, *, trust: Literal["unchanged files", "nothing"] = "unchanged files"
    ) -> None:
        self._cache = cache
        self._known: dict[str, list[Any]] = _read(cache)
        self._changed = False
        self._trust = trust
        self._seen: set[str] = set()

    def of(self, path: Path) -> str | None:
        """Digest of a file, or of a folder's relative paths and contents; None if there is nothing."""
        if path.is_dir():
            return digest_value(list(self.files(path).items()))
        return self._file(path) if path.is_file() else None

    def files(self, folder: Path) -> dict[str, str]:
        """Digest of each file of a folder by its relative path; what is half written does not count."""
        found = [(item, item.relative_to(folder).as_posix()) for item in sorted(folder.rglob("*")) if item.is_file()]
        return {name: self._file(item) for item, name in found if HIDDEN not in name}

    def save(self) -> None:
        """Write what was learnt; losing it costs only time."""
        if self._cache is not None and self._changed:
            with contextlib.suppress(PogdiffError):  # a full or read-only disk: what was to be done is done
                write_text(self._cache, json.dumps({"digest": digest_value(self._known), "known": self._known}))
            self._changed = False

    def _file(self, path: Path) -> str:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = self._known.get(str(path))
        if known is not None and known[:-1] == stamp and (self._trust != "nothing" or str(path) in self._seen):
            return str(known[-1])
        digest = digest_bytes(path)
        self._seen.add(str(path))
        self._known[str(path)] = [*stamp, digest]
        self._changed = True
        return digest


def _read(cache: Path | None) -> dict[str, list[Any]]:
    if cache is None or not cache.is_file():
        return {}
    try:
        found = json.loads(cache.read_text(encoding="utf-8"))
        known = found["known"]
        # only a memory of what can be computed again: with a flipped bit it is worth nothing
        return dict(known) if found["digest"] == digest_value(known) else {}
    except (ValueError, OSError, KeyError, TypeError, RecursionError):
        return {}
