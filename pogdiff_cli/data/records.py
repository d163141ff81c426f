"""The data set in columns: one row an image, read from a metadata file or from a folder per identity."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pogdiff_cli.data.images import IMAGE_SUFFIXES
from pogdiff_cli.data.metadata import MAX_IDENTITY, Line, clean_text, metadata_lines
from pogdiff_cli.data.paths import BadPath, Folder, relative_path, safe_folder
from pogdiff_cli.errors import Exit, PogdiffError

__all__ = ["IdentityFrom", "Records", "natural_key", "read_records", "safe_folder"]

IdentityFrom = Literal["metadata", "folder"]
_SIDECAR_LIMIT = 64 * 1024  # bytes of a caption file: more is not a caption


@dataclass(frozen=True, kw_only=True)
class Records:
    """n images in columns; row i of every column speaks of the same image."""

    file_names: list[str]  # relative POSIX paths under the images folder
    identity: NDArray[np.int32]  # (n,) codes into identity_names
    identity_names: list[str]  # in natural order: s2 before s10
    texts: list[str]  # "" where there is none
    heldout: NDArray[np.bool_]  # (n,)
    attributes: dict[str, list[str]]  # other columns; "" where a record has none

    def __len__(self) -> int:
        return len(self.file_names)

    def select(self, mask_or_rows: NDArray[np.bool_] | NDArray[np.integer]) -> Records:
        """The records of a boolean mask (n,) or of row numbers; identity codes keep their meaning."""
        rows = np.asarray(mask_or_rows)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise ValueError(f"a mask of {len(self)} records has that shape, not {rows.shape}")
            rows = np.flatnonzero(rows)
        rows = rows.astype(np.int64)
        return Records(
            file_names=[self.file_names[row] for row in rows],
            identity=self.identity[rows],
            identity_names=self.identity_names,
            texts=[self.texts[row] for row in rows],
            heldout=self.heldout[rows],
            attributes={key: [column[row] for row in rows] for key, column in self.attributes.items()},
        )

    @property
    def train(self) -> Records:
        """The records that are trained on."""
        return self.select(~self.heldout)

    @property
    def held_out(self) -> Records:
        """The records kept for evaluation."""
        return self.select(self.heldout)

    def rows_of(self, code: int) -> NDArray[np.int64]:
        """Row numbers of one identity."""
        return np.flatnonzero(self.identity == code).astype(np.int64)

    def counts(self) -> NDArray[np.int64]:
        """Images per identity code: (m,), zeros included."""
        return np.bincount(self.identity, minlength=len(self.identity_names)).astype(np.int64)

    def name_of(self, row: int) -> str:
        """Identity of one record."""
        return self.identity_names[int(self.identity[row])]


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sort key under which s2 comes before s10: text and numbers alternate."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)], text


def read_records(images: Path, metadata: Path | None, *, identity_from: IdentityFrom = "metadata") -> Records:
    """Read every record, strictly: a mistake in the data is an error (exit 3) that names its file and line.

    ``metadata``: .jsonl, .csv or .parquet with ``file_name`` and optionally ``identity``, ``text``, ``split``
    and further columns; without it, every image under ``images``. The identity is the ``identity`` column, or
    the first folder of the file name where there is no such column or ``identity_from`` is "folder".
    """
    if not images.is_dir():
        raise PogdiffError(
            f"The images folder {images} does not exist.",
            hint="Set data.images, or put a folder of pictures per identity there.",
            exit_code=Exit.DATA,
        )
    lines = _folder_lines(images) if metadata is None else metadata_lines(metadata)
    builder = _Builder(Folder(images), identity_from)
    for line in lines:
        builder.add(line)
    return builder.build(str(metadata or images))


def _folder_lines(images: Path) -> Iterator[Line]:
    """One line an image file, in natural order of the paths; hidden files and folders are passed over."""
    found = (path.relative_to(images) for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    names = sorted((path.as_posix() for path in found if not _hidden(path)), key=natural_key)
    for name in names:
        if not (images / name).is_dir():
            yield Line(where=f"{images / name}", values={"file_name": name})


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


class _Builder:
    """Collects lines into columns and refuses what cannot be right."""

    def __init__(self, folder: Folder, identity_from: IdentityFrom) -> None:
        self._folder, self._identity_from = folder, identity_from
        self._rows: dict[str, str] = {}  # file name -> where it was named first
        self._identities: list[str] = []
        self._texts: list[str] = []
        self._heldout: list[bool] = []
        self._attributes: dict[str, list[str]] = {}

    def add(self, line: Line) -> None:
        name = self._file_name(line)
        identity = self._identity(line, name)
        text = line.text("text") or self._sidecar(name, line)
        split = line.text("split") or "train"
        if split not in ("train", "heldout"):
            raise line.error(f"split {split!r} is unknown.", hint="A split is 'train' or 'heldout'.")
        for key in line.other_columns:
            column = self._attributes.setdefault(key, [""] * len(self._rows))
            column.append(line.text(key))
        self._rows[name] = line.where
        self._identities.append(identity)
        self._texts.append(text)
        self._heldout.append(split == "heldout")
        for column in self._attributes.values():
            column.extend([""] * (len(self._rows) - len(column)))

    def _file_name(self, line: Line) -> str:
        given = line.required("file_name")
        try:
            name = relative_path(given)
            self._folder.refuse_unless_regular(name)
        except BadPath as error:
            shown = given if len(given) <= 120 else given[:120] + "…"
            raise line.error(
                f"file_name {shown!r} {error}.", hint=f"Names are relative to {self._folder.root}."
            ) from error
        if name in self._rows:
            raise line.error(
                f"file_name {name!r} is already named by {self._rows[name]}.", hint="Remove one of the two."
            )
        return name

    def _identity(self, line: Line, name: str) -> str:
        if self._identity_from == "metadata" and "identity" in line.values:
            identity = line.text("identity")
            if not identity:
                raise line.error("identity is empty.", hint="Name whom or what the image shows.")
        else:
            parts = name.split("/")
            if len(parts) < 2:
                raise line.error(
                    f"{name!r} has no identity.",
                    hint="Add an 'identity' column, or put the image into a folder named after its identity.",
                )
            identity = clean_text(parts[0])
        if not any(character.isprintable() for character in identity):
            raise line.error("identity shows nothing: it is made of invisible characters.")
        if len(identity) > MAX_IDENTITY:
            raise line.error(f"identity is longer than {MAX_IDENTITY} characters.", hint="Is it a caption?")
        return identity

    def _sidecar(self, name: str, line: Line) -> str:
        """The caption file beside an image: same stem, .txt; "" where there is none."""
        start = name.rfind("/") + 1
        dot = name.rfind(".")
        relative = (name[:dot] if start < dot < len(name) - 1 else name) + ".txt"
        if not self._folder.something_at(relative):
            return ""
        try:
            path = self._folder.regular_file(relative)
            if path.stat().st_size > _SIDECAR_LIMIT:
                raise BadPath(f"is larger than {_SIDECAR_LIMIT // 1024} kB: not a caption")
            return clean_text(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise line.error(f"{relative} is not UTF-8.", hint="Save it as UTF-8.") from error
        except ValueError as error:
            raise line.error(f"caption file {relative} {error}.", hint="Mend or remove it.") from error

    def build(self, source: str) -> Records:
        if not self._rows:
            raise PogdiffError(
                f"{source} names no image.",
                hint="Put a folder of pictures per identity there, or list the pictures in a metadata file.",
                exit_code=Exit.DATA,
            )
        names = sorted(set(self._identities), key=natural_key)
        codes = {name: code for code, name in enumerate(names)}
        return Records(
            file_names=list(self._rows),
            identity=np.array([codes[identity] for identity in self._identities], dtype=np.int32),
            identity_names=names,
            texts=self._texts,
            heldout=np.array(self._heldout, dtype=np.bool_),
            attributes={key: column for key, column in self._attributes.items() if any(column)},
        )
