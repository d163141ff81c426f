"""Long-tailed sets chosen from published data sets (Sec. 4.1, App. F): whom, and which pictures to train on.

Every choice is a function of the seed and of names: it does not depend on the order in which files are found.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pogdiff_cli.data.images import IMAGE_SUFFIXES
from pogdiff_cli.errors import Exit, PogdiffError

Layout = Literal["agedb", "folders"]
_AGEDB = re.compile(r"\d+_(?P<name>.+)_(?P<age>\d+)_(?P<gender>[mf])")
_GENDER = {"m": "man", "f": "woman"}
_OF_ONE_NAME = ("Mc", "Mac")


@dataclass(frozen=True, kw_only=True)
class Group:
    """So many identities with so many training images each."""

    identities: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is chosen from a data set, and how its files are called."""

    source: str
    layout: Layout
    identity: str  # {name} of agedb, {folder} of folders
    groups: tuple[Group, ...]


@dataclass(kw_only=True)
class Found:
    """A data set's images: file names below its folder by identity, and how many files are none of its images."""

    images: dict[str, list[str]] = field(default_factory=dict)
    other: int = 0


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """One line of the metadata."""

    file_name: str
    identity: str
    split: Literal["train", "heldout"]
    attributes: Mapping[str, str]


def spoken(name: str) -> str:
    """JWMarriott -> JW Marriott, EdwardGRobinson -> Edward G Robinson, SteveMcQueen -> Steve McQueen."""
    parts = [name[:1]]
    for before, letter, after in zip(name, name[1:], name[2:] + " ", strict=False):
        begins = before.islower() or (before.isupper() and after.islower()) or before == "."
        if letter.isupper() and begins and not parts[-1].endswith(_OF_ONE_NAME):
            parts.append("")
        parts[-1] += letter
    return " ".join(" ".join(parts).replace("_", " ").split())


def find_images(folder: Path, recipe: Recipe) -> Found:
    """Every image of the data set, by identity."""
    found = Found()
    parents: dict[str, Path] = {}
    for path in _files(folder):
        identity = _identity(path, folder, recipe)
        if identity is None:
            found.other += 1
            continue
        if recipe.layout == "folders" and parents.setdefault(identity, path.parent) != path.parent:
            raise PogdiffError(
                f"{folder} has two folders of the name {path.parent.name}: {parents[identity]} and {path.parent}.",
                hint=f"Point --images at one copy of {recipe.source}.",
                exit_code=Exit.DATA,
            )
        found.images.setdefault(identity, []).append(path.relative_to(folder).as_posix())
    if not found.images:
        expected = "files such as 12_JWMarriott_60_m.jpg" if recipe.layout == "agedb" else "a folder per identity"
        raise PogdiffError(
            f"{folder} does not look like {recipe.source}: it should hold {expected}.", exit_code=Exit.DATA
        )
    return found


def choose(images: Mapping[str, Sequence[str]], recipe: Recipe, *, seed: int) -> list[Chosen]:
    """Identities of each group, larger groups first, each with an image to spare; all other images are held out."""
    free = sorted(images, key=lambda identity: _draw(seed, identity))
    lines: list[Chosen] = []
    for group in sorted(recipe.groups, key=lambda group: -group.images):
        fitting = [identity for identity in free if len(images[identity]) > group.images]
        if len(fitting) < group.identities:
            raise PogdiffError(
                f"{recipe.source} should have {group.identities} further identities with more than {group.images} "
                f"images; here are {len(fitting)}.",
                hint="Is --images the whole data set?",
                exit_code=Exit.DATA,
            )
        for identity in fitting[: group.identities]:
            lines += _lines(identity, images[identity], group.images, recipe, seed)
        taken = set(fitting[: group.identities])
        free = [identity for identity in free if identity not in taken]
    return lines


def _lines(identity: str, names: Sequence[str], count: int, recipe: Recipe, seed: int) -> Iterator[Chosen]:
    drawn = sorted(names, key=lambda name: _draw(seed, name))
    train = set(drawn[:count])
    for name in sorted(names):
        split: Literal["train", "heldout"] = "train" if name in train else "heldout"
        attributes = _attributes(name) if recipe.layout == "agedb" else {}
        yield Chosen(file_name=name, identity=identity, split=split, attributes=attributes)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file():
            yield path


def _identity(path: Path, folder: Path, recipe: Recipe) -> str | None:
    if recipe.layout == "folders":
        return None if path.parent == folder else recipe.identity.format(folder=path.parent.name)
    parts = _AGEDB.fullmatch(path.stem)
    return None if parts is None else recipe.identity.format(name=spoken(parts["name"]))


def _attributes(name: str) -> dict[str, str]:
    parts = _AGEDB.fullmatch(Path(name).stem)
    return {} if parts is None else {"age": parts["age"], "gender": _GENDER[parts["gender"]]}


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
