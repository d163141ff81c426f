"""What tests share: a tiny random model, a tiny random extractor, pictures, a project of them, and the command line."""

from __future__ import annotations

import os
import signal

# Before any library reads them: no test touches the network, spreads over all cores or draws bars.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# under nohup, or in the background of a script, these are ignored: what the tests start must hear of them
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# the same examples in every run; HYPOTHESIS_PROFILE=wide searches further ones
settings.register_profile("fast", derandomize=True, database=None, deadline=None)
settings.register_profile("wide", max_examples=2000, database=None, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

#: Images of each identity: one of the many, one medium, two of the few (with TINY's bounds).
COUNTS = {"Ada Lovelace": 6, "Alan Turing": 4, "Grace Hopper": 2, "Katherine Johnson": 2}

#: Settings under which the whole road takes seconds; {sd} and {vit} are the folders of the tiny models.
TINY = [
    "pretrained_model_name_or_path={sd}",
    "data.resolution=32",
    "data.many_at_least=5",
    "index.extractor=hf:{vit}#cls",
    "density.steps=50",
    "train.mixed_precision=no",
    "train.max_train_steps=6",
    "train.train_batch_size=4",
    "train.logging_steps=2",
    "train.checkpointing_steps=3",
    "sample.images_per_identity=2",
    "sample.num_inference_steps=3",
    "evaluate.face=hf:{vit}#cls",
    "evaluate.dino=hf:{vit}#cls",
    "evaluate.bootstrap=100",
]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one command ended: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@dataclass(frozen=True, kw_only=True)
class TinyProject:
    """A project folder, and the command line inside it with TINY on top."""

    root: Path
    settings: tuple[str, ...]  # KEY=VALUE, as --set takes them
    command: Command

    def __call__(self, *arguments: str | Path) -> Outcome:
        """``project("train", "--gpus", "none")``: in this project, with the tiny settings first (later ones win)."""
        name, *rest = arguments
        return self.command(name, "-C", self.root, *self.flags, *rest)

    @property
    def flags(self) -> list[str]:
        """``--set KEY=VALUE`` for each of the tiny settings."""
        return [word for setting in self.settings for word in ("--set", setting)]

    def configure(self, *settings: str) -> TinyProject:
        """The same project with further settings."""
        return TinyProject(root=self.root, settings=(*self.settings, *settings), command=self.command)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that mount a file system are left out, not skipped, where this process may not."""
    from faults import mountable

    if any(item.get_closest_marker("mounts") for item in items) and not mountable():
        left_out = [item for item in items if item.get_closest_marker("mounts")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own POGDIFF_TRAIN__A1 changes no test."""
    for variable in list(os.environ):
        if variable.startswith("POGDIFF_") and variable != "POGDIFF_CACHE":
            monkeypatch.delenv(variable)


@pytest.fixture
def pogdiff(capsys: pytest.CaptureFixture[str]) -> Command:
    """``pogdiff("status", "-C", folder)``: one command, in this process."""
    from pogdiff_cli.cli.app import _status

    def command(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        status = _status([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Outcome(status=status, out=said.out, err=said.err)

    return command


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion of 32x32 images, saved as diffusers saves it. Read only."""
    from tiny import save_stable_diffusion

    return save_stable_diffusion(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny pipeline (see families.SAVE), made when first asked for. Read only."""
    from families import SAVE

    root = tmp_path_factory.mktemp("families")
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = SAVE[name](root / name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT of 32x32 images with its image processor. Read only."""
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path_factory.mktemp("models") / "vit"
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_pictures(folder: Path, counts: dict[str, int], *, seed: int = 0) -> Path:
    """A folder per identity: noise around a colour of its own, 40x36 PNG."""
    draw = np.random.default_rng(seed)
    for identity, count in counts.items():
        (folder / identity).mkdir(parents=True, exist_ok=True)
        colour = draw.integers(40, 216, size=3)
        for number in range(count):
            pixels = np.clip(colour + draw.integers(-40, 40, size=(36, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / identity / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per identity. Read only."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), COUNTS)


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path, tiny_vit: Path) -> Path:
    """A project with one run through every stage. Read only: copy it."""
    from finished import make

    return make(tmp_path_factory.mktemp("finished") / "p", tiny_sd, tiny_vit)


@pytest.fixture
def project(tmp_path: Path, pogdiff: Command, pictures: Path, tiny_sd: Path, tiny_vit: Path) -> TinyProject:
    """A fresh project made by ``pogdiff init`` from the pictures."""
    root = tmp_path / "project"
    made = pogdiff("init", root, "--template", "sd15", "--images", pictures)
    assert made.status == 0, made.err
    settings = tuple(setting.format(sd=tiny_sd, vit=tiny_vit) for setting in TINY)
    return TinyProject(root=root, settings=settings, command=pogdiff)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_sd: Path, tiny_vit: Path) -> TinyProject:
    """A project in which every stage has been run once. Read only: work on a copy (faults.copied)."""
    from pogdiff_cli.cli.app import _status

    def command(*arguments: str | Path) -> Outcome:
        return Outcome(status=_status([str(argument) for argument in arguments]), out="", err="")

    root = tmp_path_factory.mktemp("finished") / "project"
    assert command("init", root, "--template", "sd15", "--images", pictures).status == 0
    settings = tuple(setting.format(sd=tiny_sd, vit=tiny_vit) for setting in TINY)
    project = TinyProject(root=root, settings=settings, command=command)
    assert project("run", "--gpus", "none").status == 0
    return project
