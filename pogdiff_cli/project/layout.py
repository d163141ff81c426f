"""Where things live in a project, and how one is found and opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import HIDDEN
from pogdiff_cli.project.config import RUN_NAME, Config
from pogdiff_cli.project.digests import Digests
from pogdiff_cli.project.loading import load_config
from pogdiff_cli.project.manifest import Manifest, read_manifest, write_manifest

CONFIG_NAME = "pogdiff.yaml"
MANIFEST_NAME = "manifest.yaml"
BUILDING_NAME = f"{HIDDEN}init"  # where ``init`` builds a project, in the project's own folder


@dataclass(frozen=True)
class Run:
    """The folder of one run, and its name."""

    name: str
    folder: Path

    @property
    def final(self) -> Path:
        """A diffusers pipeline, or a PEFT adapter."""
        return self.folder / "final"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``checkpoint-000500`` and so on."""
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line for each logged step."""
        return self.folder / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Generated images, one folder an identity."""
        return self.folder / "samples"

    @property
    def evaluation(self) -> Path:
        """Scores and tables."""
        return self.folder / "evaluation"


@dataclass(frozen=True)
class Project:
    """A project directory with its configuration; paths only, nothing is created by asking."""

    root: Path
    config: Config
    scratch: Path | None = None  # a folder that takes the place of artifacts/, for work that is to leave no trace

    @property
    def artifacts(self) -> Path:
        """What stages make and later stages read."""
        return self.scratch or self.root / "artifacts"

    @property
    def cache(self) -> Path:
        """What can be computed again."""
        return self.artifacts / "cache"

    @property
    def captions(self) -> Path:
        """One JSON line for each training image."""
        return self.artifacts / "captions.jsonl"

    @property
    def descriptions(self) -> Path:
        """What captioners have said of pictures: never asked for twice."""
        return self.artifacts / "descriptions.jsonl"

    @property
    def names(self) -> Path:
        """Identity to generic name."""
        return self.artifacts / "names.yaml"

    @property
    def index(self) -> Path:
        """Image embeddings and neighbours."""
        return self.artifacts / "index"

    @property
    def density(self) -> Path:
        """Text VAE and log densities."""
        return self.artifacts / "density"

    @property
    def manifest_path(self) -> Path:
        """The program's facts."""
        return self.root / MANIFEST_NAME

    @property
    def images(self) -> Path:
        """Folder of the images."""
        return self.root / self.config.data.images

    @property
    def metadata(self) -> Path | None:
        """The metadata file, if the project has one."""
        return None if self.config.data.metadata is None else self.root / self.config.data.metadata

    @cached_property
    def digests(self) -> Digests:
        """Digests of this project's files."""
        return Digests(self.cache / "digests.json")

    def run(self, name: str) -> Run:
        """The run of this name (which need not exist)."""
        if not RUN_NAME.match(name):
            raise PogdiffError(
                f"'{name}' cannot name a run: letters, digits, '.', '_' and '-', 64 at most.", exit_code=Exit.USAGE
            )
        return Run(name, self.root / "runs" / name)

    def manifest(self) -> Manifest:
        """The facts as they stand on disk."""
        if not self.manifest_path.exists():
            return Manifest(project=self.root.name)
        return read_manifest(self.manifest_path)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the facts on disk."""
        write_manifest(self.manifest_path, manifest)


def find_root(start: Path) -> Path:
    """The nearest folder from ``start`` upwards with a ``pogdiff.yaml``; exit 2 where there is none."""
    if not start.is_dir():
        raise PogdiffError(f"There is no folder {start}.", exit_code=Exit.USAGE)
    for folder in (start.resolve(), *start.resolve().parents):
        if (folder / CONFIG_NAME).is_file():
            return folder
    if (start / BUILDING_NAME).is_dir():
        raise PogdiffError(
            f"{start.resolve()} is no pogdiff project yet: 'pogdiff init' was interrupted.",
            hint="Type the same 'pogdiff init' again.",
            exit_code=Exit.USAGE,
        )
    if (start / MANIFEST_NAME).is_file():
        raise PogdiffError(
            f"{start.resolve()} has lost its {CONFIG_NAME}.",
            hint="Restore it from a backup; runs/NAME/config.resolved.yaml holds all settings of a run.",
            exit_code=Exit.USAGE,
        )
    raise PogdiffError(
        f"{start.resolve()} is no pogdiff project: it has no {CONFIG_NAME}.",
        hint="Make one with 'pogdiff init myproj', or name its folder with -C.",
        exit_code=Exit.USAGE,
    )


def open_project(start: Path, overrides: Mapping[str, Any] | None = None) -> Project:
    """Find the project around ``start`` and read its configuration with ``overrides`` on top."""
    root = find_root(start)
    return Project(root=root, config=load_config(root / CONFIG_NAME, overrides=overrides))
