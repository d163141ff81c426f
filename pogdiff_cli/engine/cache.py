"""A cache of tensors under content addresses: sharded safetensors, memory-mapped, checked by digest.

A key says what the tensor was made from; the folder (the *space*) says how. Nothing in it can be stale, and all
of it can be made again: a shard whose digest does not hold is left out and its entries are encoded anew.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pogdiff_cli.project.atomic import HIDDEN, explained, fsync_path
from pogdiff_cli.project.digests import digest_bytes


class TensorCache:
    """Entries are small dictionaries of tensors, all entries with the same names and shapes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self.damaged: list[Path] = []
        for path in sorted(folder.glob("*.safetensors")):
            if not path.name.startswith(HIDDEN):
                self._admit(path)

    def missing(self, keys: Sequence[str]) -> list[str]:
        """The keys without an entry, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._where]

    def add(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write one shard; it is whole under its final name or not there."""
        flat = {f"{key}/{name}": t.contiguous() for key, entry in entries.items() for name, t in entry.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=HIDDEN, suffix=".safetensors", dir=self.folder)
        os.close(descriptor)
        temporary = Path(name)
        try:
            with explained(self.folder):
                save_file(flat, temporary)
                fsync_path(temporary)
                path = self.folder / f"{_digest(temporary)}.safetensors"
                os.replace(temporary, path)
                fsync_path(self.folder)
        finally:
            temporary.unlink(missing_ok=True)
        self._admit(path)

    def get(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Entries stacked along a new first axis, by tensor name."""
        columns: dict[str, list[Tensor]] = {}
        for key in keys:
            shard = self._shard(self._where[key])
            for name in self._names:
                columns.setdefault(name, []).append(shard.get_tensor(f"{key}/{name}"))
        return {name: torch.stack(tensors) for name, tensors in columns.items()}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # each data worker maps the shards for itself

    def _admit(self, path: Path) -> None:
        try:
            if path.stem != _digest(path):
                raise SafetensorError("digest")
            with safe_open(path, "pt") as shard:
                names = [name.rsplit("/", 1) for name in shard.keys()]  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, ValueError):
            self.damaged.append(path)
            return
        self._where.update({key: path for key, _ in names})
        self._names = sorted({name for _, name in names})

    def _shard(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = safe_open(path, "pt")
        return self._open[path]


def _digest(path: Path) -> str:
    return digest_bytes(path).removeprefix("sha256:")[:32]
