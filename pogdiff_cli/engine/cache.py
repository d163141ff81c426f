"""A cache of tensors under content addresses, for thousands or for millions of entries.

A key says what the tensor was made from; the folder (the *space*) says how. Nothing in it can be stale, and all of it
can be made again: a file that is damaged is set aside, and its entries are encoded anew. Several processes may add to
one folder at a time: a file appears whole, under the digest of its bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pogdiff_cli.engine.shards import DamagedShard, Keys, Layout, Mapped, Shard, open_shard, write_shard
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import HIDDEN

Locations = NDArray[np.int64]
SMALL = 256 * 1024**2  # bytes of a cache that is read through when it is opened
_ROW_BITS = 32
_MAPPED_AT_MOST = 16_384  # files: a process may have some 65,000 mappings
_LEFT_BEHIND = 3600.0  # seconds: writing one file takes a moment
_ABSENT = -1


class DamagedCache(PogdiffError):
    """An entry that cannot be trusted; what held it has been set aside, so that it is made again."""

    def __init__(self, message: str) -> None:
        # a data worker's failure arrives as the text of its traceback: the last line says what happened
        last = message.strip().splitlines()[-1].removeprefix(f"{__name__}.{type(self).__name__}: ")
        super().__init__(last, exit_code=Exit.DATA)


class TensorCache:
    """Entries are small dictionaries of tensors. Those that are read together must have the same shapes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[Path] = []
        self._shards: list[Shard] = []
        self._layouts: dict[Layout, int] = {}
        self._layout_of: list[int] = []  # by shard
        self._seen: set[str] = set()
        self._index = _Index()
        self._mapped: dict[int, Mapped] = {}
        self._sweep()
        self.refresh()

    def refresh(self) -> None:
        """Take in what other processes added; locations given so far stay valid."""
        paths = [path for path in self.folder.glob("*.safetensors") if not path.name.startswith(HIDDEN)]
        sizes = {path: _size(path) for path in paths}
        small = sum(sizes.values()) <= SMALL
        for path in sorted(paths):
            if path.name not in self._seen:
                self._admit(path, check_all=small)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of an entry; empty where there is no entry."""
        return tuple(sorted({column.name for layout in self._layouts for column in layout}))

    def missing(self, keys: Sequence[str]) -> list[str]:
        """The keys without an entry, each once, in order."""
        return [keys[place] for place in self.missing_places(keys)]

    def missing_places(self, keys: Iterable[str], *, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """Where in ``keys`` those without an entry stand, each once, in order; of several ranks, this one's share.

        A key belongs to one rank whatever else is missing, so that the ranks need not look at the same moment.
        """
        hashed = _hashed(keys)
        whose = np.ascontiguousarray(hashed[:, :8]).view("<u8")[:, 0] % np.uint64(world)
        absent = np.flatnonzero((self._index.find(hashed) == _ABSENT) & (whose == rank))
        _, first = np.unique(_sortable(hashed[absent]), return_index=True)
        return np.sort(absent[first])

    def add(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write the entries, one file for each of their shapes; a file is whole under its final name or not there."""
        groups: dict[Any, list[str]] = {}
        for key, entry in entries.items():
            looks = tuple((name, entry[name].dtype, tuple(entry[name].shape)) for name in sorted(entry))
            groups.setdefault(looks, []).append(key)
        for looks, keys in groups.items():
            columns = {name: torch.stack([entries[key][name] for key in keys]) for name, _, _ in looks}
            self._admit(write_shard(self.folder, _hashed(keys), columns), check_all=False)

    def get(self, keys: Iterable[str], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Entries, or some of their tensors, stacked along a new first axis, by tensor name."""
        return self.read(self.locate(keys), names)

    def locate(self, keys: Iterable[str]) -> Locations:
        """Where the entries are: keys n -> (n,), equal for equal keys. They hold for this object and its copies."""
        found = self._index.find(_hashed(keys))
        if np.any(found == _ABSENT):
            raise PogdiffError(
                f"{np.sum(found == _ABSENT)} of {len(found)} entries are not in the cache {self.folder.name}.",
                hint="Type the same command again.",
                exit_code=Exit.MISSING,
            )
        return found

    def read(self, locations: Locations, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Entries at (n,) locations, stacked, by tensor name; ValueError where their shapes differ."""
        if len(locations) == 0:
            return {}
        shards, rows = np.asarray(locations) >> _ROW_BITS, np.asarray(locations) & ((1 << _ROW_BITS) - 1)
        order = np.argsort(shards, kind="stable")
        runs = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1)
        if np.ptp(self.layouts(locations)) > 0:
            raise ValueError("entries of different shapes cannot be stacked")
        shard = self._shards[shards[0]]
        columns = [column for column in shard.layout if names is None or column.name in names]
        out = {column.name: column.empty(len(rows)) for column in columns}
        for run in runs:
            self._read_run(int(shards[run[0]]), rows[run], run, out)
        return {column.name: column.torch_of(out[column.name]) for column in columns}

    def layouts(self, locations: Locations) -> NDArray[np.int64]:
        """A number (n,) for each location: entries with the same one can be stacked."""
        return np.asarray(self._layout_of, dtype=np.int64)[np.asarray(locations) >> _ROW_BITS]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}  # each data worker maps the files for itself

    def _read_run(self, shard: int, rows: NDArray[np.int64], places: NDArray[np.int64], out: dict[str, Any]) -> None:
        try:
            mapped = self._mapped.get(shard)
            if mapped is None:
                if len(self._mapped) >= _MAPPED_AT_MOST:
                    self._mapped.pop(next(iter(self._mapped)))
                mapped = self._mapped[shard] = self._shards[shard].mapped()
            for name, values in out.items():
                mapped.read(name, rows, values, places)
        except (DamagedShard, FileNotFoundError) as problem:
            path = self._shards[shard].path
            _set_aside(path)
            reason = str(problem) if isinstance(problem, DamagedShard) else "it has vanished"
            raise DamagedCache(
                f"{path} is damaged ({reason}) and was set aside. "
                "Type the same command again: what it held is made anew."
            ) from problem

    def _sweep(self) -> None:
        """Remove what killed processes left half written; a younger file may be another process's at work."""
        left = list(self.folder.glob(f"{HIDDEN}*"))
        if left:
            with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=self.folder, prefix=HIDDEN) as fresh:
                now = os.fstat(fresh.fileno()).st_mtime  # by the file system's clock, which may not be this machine's
                for path in left:
                    with contextlib.suppress(OSError):
                        if now - path.stat().st_mtime > _LEFT_BEHIND:
                            path.unlink()

    def _admit(self, path: Path, *, check_all: bool) -> None:
        self._seen.add(path.name)
        try:
            opened = open_shard(path, check="every byte" if check_all else "index")
        except FileNotFoundError:
            return  # another process has just set it aside
        except DamagedShard:
            self.damaged.append(path)
            self._seen.discard(path.name)  # the same entries, written anew, have the same name
            _set_aside(path)
            return
        number = len(self._shards)
        self._shards.append(opened.shard)
        self._layout_of.append(self._layouts.setdefault(opened.shard.layout, len(self._layouts)))
        self._index.add(opened.keys, (np.int64(number) << _ROW_BITS) + np.arange(len(opened.keys)))


class _Index:
    """Keys (n, 32) and their locations, sorted when something is looked for."""

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype="S32")
        self._locations = np.empty(0, dtype=np.int64)
        self._fresh: list[tuple[NDArray[np.bytes_], Locations]] = []

    def add(self, keys: Keys, locations: Locations) -> None:
        self._fresh.append((_sortable(keys), locations))

    def find(self, keys: Keys) -> Locations:
        """Location of each key, -1 where there is none; of two entries with one key, the one that came first."""
        self._merge()
        if len(self._keys) == 0:
            return np.full(len(keys), _ABSENT, dtype=np.int64)
        wanted = _sortable(keys)
        places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[places] == wanted, self._locations[places], _ABSENT)

    def _merge(self) -> None:
        if not self._fresh:
            return
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._fresh)])
        locations = np.concatenate([self._locations, *(locations for _, locations in self._fresh)])
        order = np.argsort(keys, kind="stable")
        self._keys, self._locations, self._fresh = keys[order], locations[order], []


def _hashed(keys: Iterable[str]) -> Keys:
    digests = b"".join(hashlib.sha256(key.encode()).digest() for key in keys)
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)


def _sortable(keys: Keys) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(keys).view("S32").reshape(-1)


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _set_aside(path: Path) -> None:
    """Out of the way of the next attempt; another process may have done so already."""
    with contextlib.suppress(OSError):
        os.replace(path, path.with_suffix(".damaged"))
