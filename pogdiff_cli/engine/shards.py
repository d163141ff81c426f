"""One file of a tensor cache: n entries in columns, as safetensors that can be judged without reading it all.

    keys        (n, 32) uint8   SHA-256 of each entry's key
    checksums   (n, c)  int64   CRC-32 of each entry, one for each of its c tensors in the order of their names
    entry.NAME  (n, ...)        the tensors, all entries of one file with the same names, types and shapes

The file is named after the digest of its bytes. A digest of its keys, checksums and columns stands in its metadata,
so that a folder of any size opens by reading headers and keys; a tensor is held against its checksum when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from pogdiff_cli.project.atomic import HIDDEN, fsync_path, made_folder
from pogdiff_cli.project.digests import digest_bytes, digest_value
from pogdiff_cli.project.disk import explained, takes

Keys = NDArray[np.uint8]
_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
# numpy has no bfloat16: its bits travel as integers
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<i2", "I64": "<i8", "I32": "<i4", "U8": "u1"}
_PREFIX = "entry."
_HEADER_AT_MOST = 1 << 20


class DamagedShard(ValueError):
    """A file that is not what its name or its metadata says."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One tensor of every entry."""

    name: str
    dtype: str  # as safetensors writes it
    shape: tuple[int, ...]  # of one entry

    def empty(self, n: int) -> NDArray[Any]:
        """Room for n entries of this column."""
        return np.empty((n, *self.shape), dtype=_NUMPY[self.dtype])

    def torch_of(self, values: NDArray[Any]) -> Tensor:
        """The column's values, (n, ...), as the type they were given in."""
        tensor = torch.from_numpy(values)
        return tensor.view(torch.bfloat16) if self.dtype == "BF16" else tensor


Layout = tuple[Column, ...]
"""What the entries of a file look like, by name; files of one layout can be stacked."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Where the columns of one file lie; n entries."""

    path: Path
    size: int  # bytes of the file
    count: int
    layout: Layout
    offsets: tuple[int, ...]  # of the checksums, then of each column

    def mapped(self) -> Mapped:
        """The file in memory, page by page as it is read."""
        if self.path.stat().st_size != self.size:
            raise DamagedShard("its size changed")
        # no descriptor stays open, so that the number of files is not bounded by what a process may open
        content = torch.from_file(str(self.path), shared=False, size=self.size, dtype=torch.uint8).numpy()

        def view(offset: int, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
            count = prod(shape)
            return content[offset : offset + count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

        columns = {
            column.name: view(offset, _NUMPY[column.dtype], (self.count, *column.shape))
            for column, offset in zip(self.layout, self.offsets[1:], strict=True)
        }
        return Mapped(columns=columns, checksums=view(self.offsets[0], "<i8", (self.count, len(self.layout))))


class Mapped:
    """One file's columns. An entry is checked when this process reads it for the first time."""

    def __init__(self, *, columns: dict[str, NDArray[Any]], checksums: NDArray[np.int64]) -> None:
        self._columns, self._checksums = columns, checksums
        self._places = {name: place for place, name in enumerate(columns)}
        self._checked = np.zeros(checksums.shape, dtype=np.bool_)

    def read(self, name: str, rows: NDArray[np.int64], out: NDArray[Any], places: NDArray[np.int64]) -> None:
        """Out[places] = column[rows]."""
        out[places] = self._columns[name][rows]
        checked, expected = self._checked[:, self._places[name]], self._checksums[:, self._places[name]]
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            if not checked[row]:
                if zlib.crc32(np.ascontiguousarray(out[place]).data) != expected[row]:
                    raise DamagedShard("a checksum does not hold")
                checked[row] = True


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A file that can be read, and the keys of its entries (n, 32)."""

    shard: Shard
    keys: Keys


def write_shard(folder: Path, keys: Keys, tensors: Mapping[str, Tensor]) -> Path:
    """Write n entries; the file is whole under its final name or not there. Tensors (n, ...)."""
    columns = {_PREFIX + name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    checksums = torch.tensor([[_crc(t[i]) for t in columns.values()] for i in range(len(keys))], dtype=torch.int64)
    flat = {"keys": torch.from_numpy(np.array(keys)), "checksums": checksums, **columns}
    names = {dtype: name for name, dtype in _TORCH.items()}
    layout = tuple(
        Column(name=name.removeprefix(_PREFIX), dtype=names[t.dtype], shape=tuple(t.shape[1:]))
        for name, t in columns.items()
    )
    size = sum(tensor.nbytes for tensor in flat.values())
    with explained(folder, lambda: takes(size)):
        made_folder(folder)
        descriptor, name = tempfile.mkstemp(prefix=f"{HIDDEN}shard-", suffix=".safetensors", dir=folder)
    os.close(descriptor)
    temporary = Path(name)
    try:
        with explained(folder, lambda: takes(size)):
            save_file(flat, temporary, metadata={"index": _index_digest(layout, keys, checksums.numpy())})
            fsync_path(temporary)
            path = folder / f"{_named(temporary)}.safetensors"
            os.replace(temporary, path)
            fsync_path(folder)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def open_shard(path: Path, *, check: Literal["index", "every byte"]) -> Opened:
    """Read what is needed to find entries; raises DamagedShard where it is not what was written."""
    if check == "every byte" and path.stem != _named(path):
        raise DamagedShard("its digest does not hold")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, start = _header(file, size)
        try:
            return _opened(path, file, size, header, start)
        except (KeyError, TypeError, ValueError) as problem:
            raise DamagedShard("its header cannot be read") from problem


def bad_entries(shard: Shard) -> int:
    """How many of a file's tensors do not have their checksum."""
    mapped = shard.mapped()
    bad = 0
    for column in shard.layout:
        for row in range(shard.count):
            try:
                mapped.read(column.name, np.array([row]), column.empty(1), np.array([0]))
            except DamagedShard:
                bad += 1
    return bad


def _opened(path: Path, file: BinaryIO, size: int, header: dict[str, Any], start: int) -> Opened:
    metadata = header.pop("__metadata__")
    count = int(header["keys"]["shape"][0])
    names = sorted(name for name in header if name.startswith(_PREFIX))
    layout = tuple(
        Column(
            name=name.removeprefix(_PREFIX),
            dtype=str(header[name]["dtype"]),
            shape=tuple(int(side) for side in header[name]["shape"][1:]),
        )
        for name in names
    )
    offsets = {name: start + int(entry["data_offsets"][0]) for name, entry in header.items()}
    keys = np.frombuffer(_part(file, offsets["keys"], count * 32), dtype=np.uint8).reshape(count, 32)
    checksums = np.frombuffer(_part(file, offsets["checksums"], count * len(layout) * 8), dtype="<i8")
    if metadata["index"] != _index_digest(layout, keys, checksums):
        raise DamagedShard("the digest of its keys does not hold")
    ends = [offsets[name] + _bytes(column, count) for name, column in zip(names, layout, strict=True)]
    if max(ends) > size or len(header) != len(layout) + 2:
        raise DamagedShard("it is cut off")
    places = (offsets["checksums"], *(offsets[name] for name in names))
    return Opened(shard=Shard(path=path, size=size, count=count, layout=layout, offsets=places), keys=keys)


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(_HEADER_AT_MOST, size):
        raise DamagedShard("it has no header")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as problem:
        raise DamagedShard("its header cannot be read") from problem
    if not isinstance(header, dict):
        raise DamagedShard("its header cannot be read")
    return header, 8 + length


def _part(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _bytes(column: Column, count: int) -> int:
    return count * prod(column.shape) * np.dtype(_NUMPY[column.dtype]).itemsize


def _index_digest(layout: Layout, keys: Keys, checksums: NDArray[np.int64]) -> str:
    digest = hashlib.sha256(digest_value([[c.name, c.dtype, list(c.shape)] for c in layout]).encode())
    digest.update(np.ascontiguousarray(keys).data)
    digest.update(np.ascontiguousarray(checksums, dtype="<i8").data)
    return digest.hexdigest()


def _crc(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _named(path: Path) -> str:
    return digest_bytes(path).removeprefix("sha256:")[:32]
