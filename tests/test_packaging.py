"""The wheel: what is in it, what must not be, and that it works on its own from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from pogdiff_cli import __version__
from pogdiff_cli.project.templates import template_names

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = "Scripts" if os.name == "nt" else "bin"


def execute(*command: str | Path, cwd: Path) -> str:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    execute(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_package_its_templates_and_its_data(members: set[str]) -> None:
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pogdiff_cli").rglob("*.py")}
    data = {f"pogdiff_cli/report/templates/{name}" for name in ("report.html.j2", "report.css")}
    data |= {f"pogdiff_cli/report/templates/rating.{ending}" for ending in ("html.j2", "css", "js")}
    data |= {"pogdiff_cli/data/generic_names.txt", "pogdiff_cli/data/second_names.txt"}
    templates = {f"pogdiff_cli/_templates/{name}/pogdiff.yaml" for name in template_names()}
    faces = "pogdiff_cli/_templates/faces"
    templates |= {f"{faces}/{name}" for name in ("assets.yaml", "template.yaml", "data/metadata.jsonl")}
    templates |= {f"{faces}/base/model_index.json", f"{faces}/base/unet/diffusion_pytorch_model.safetensors"}
    assert sorted((sources | data | templates) - members) == []


def test_the_wheel_holds_no_face_weights_photographs_caches_tests_or_pickles(members: set[str]) -> None:
    endings = (".dat", ".pgm", ".png", ".jpg", ".pyc", ".pt", ".bin", ".pkl", ".ckpt", ".whl")
    folders = ("__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache", "tests", ".git")
    wrong = [name for name in members if name.endswith(endings) or set(name.split("/")[:-1]) & set(folders)]
    assert sorted(wrong) in ([], ["pogdiff_cli/_templates/faces/base/samples.png"])  # drawn by the base model itself
    tops = {name.split("/")[0] for name in members}
    assert tops == {"pogdiff_cli", f"pogdiff-{__version__}.dist-info"}


def test_the_wheel_is_small_enough_to_be_fetched_in_a_coffee_break(wheel: Path) -> None:
    assert wheel.stat().st_size < 60 * 2**20  # an index takes 100 MB at most


def test_the_wheel_carries_its_licence_and_its_command(wheel: Path) -> None:
    info = f"pogdiff-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert "pogdiff = pogdiff_cli.cli.app:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert b"Apache License" in archive.read(f"{info}/licenses/LICENSE")
        metadata = archive.read(f"{info}/METADATA").decode()
    assert f"Version: {__version__}\n" in metadata
    assert "Requires-Python: >=3.10" in metadata


def test_an_installed_wheel_makes_a_project_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    execute(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / SCRIPTS / "python"
    execute(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel, cwd=tmp_path
    )
    place = execute(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    (Path(place) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # stands in for --deps
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pogdiff = venv / SCRIPTS / "pogdiff"
    where = execute(python, "-c", "import pogdiff_cli; print(pogdiff_cli.__file__)", cwd=elsewhere).strip()
    assert Path(where).is_relative_to(venv)
    assert execute(pogdiff, "--version", cwd=elsewhere).split()[-1] == __version__
    assert "no images yet" in execute(pogdiff, "init", "p", "--template", "sd15", cwd=elsewhere)
    assert (elsewhere / "p" / "pogdiff.yaml").read_text() == (ROOT / "templates/sd15/pogdiff.yaml").read_text()
