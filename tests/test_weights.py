"""Which pipeline folders are read, and which are refused before anything in them could run."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, TinyProject

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.stable_diffusion import StableDiffusion
from pogdiff_cli.models.weights import resolve_pipeline


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd, tmp_path / "sd"))


def put(folder: Path, component: str, value: list[str]) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {component: value}))


def test_a_published_folder_with_a_safety_checker_is_read(folder: Path) -> None:
    put(folder, "safety_checker", ["stable_diffusion", "StableDiffusionSafetyChecker"])
    put(folder, "feature_extractor", ["transformers", "CLIPImageProcessor"])
    put(folder, "scheduler", ["diffusers", "PNDMScheduler"])
    found = resolve_pipeline("sd", folder.parent)
    adapter = StableDiffusion(found, device=torch.device("cpu"))
    assert type(adapter.scheduler("native")).__name__ == "PNDMScheduler"
    assert type(adapter.scheduler("ddim")).__name__ == "DDIMScheduler"


def test_a_folder_that_brings_code_of_its_own_is_refused(folder: Path) -> None:
    put(folder, "unet", ["my_unet", "MyUNet"])
    with pytest.raises(PogdiffError, match="code of its own") as refusal:
        resolve_pipeline("sd", folder.parent)
    assert refusal.value.exit_code == Exit.MISSING


def test_pickled_weights_are_refused(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(PogdiffError, match=r"no safetensors file in unet/"):
        resolve_pipeline("sd", folder.parent)


def test_another_family_is_named(folder: Path) -> None:
    put(folder, "text_encoder", ["transformers", "T5EncoderModel"])
    with pytest.raises(PogdiffError, match="its text_encoder is T5EncoderModel, not CLIPTextModel"):
        StableDiffusion(folder, device=torch.device("cpu"))


def test_raw_features_are_scored_from_the_command_line(pogdiff: Command, tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(50, 6))
    np.save(tmp_path / "real.npy", features)
    np.save(tmp_path / "fake.npy", features + 2.0)
    files = ("--real-features", tmp_path / "real.npy", "--fake-features", tmp_path / "fake.npy")
    outcome = pogdiff("evaluate", *files, "--metrics", "fid,kid,prdc", "--json")
    values = json.loads(outcome.out)
    assert values["fid"] == pytest.approx(6 * 2.0**2, rel=1e-12)  # equal covariances: the squared shift alone
    assert {"kid", "precision", "recall", "density", "coverage"} <= set(values)
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    bad = pogdiff("evaluate", "--real-features", tmp_path / "pickled.npy", *files[2:])
    assert bad.status == 3
    assert "no .npy file of numbers" in bad.err


def header(shape: str) -> bytes:
    """An .npy file that is a header alone."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.array([[{}]], dtype=object), "pickled objects, which are never loaded"),
        (pickle.dumps([1.0]), "pickled objects, which are never loaded"),
        (header("(10**6, 64)"), "no .npy file of numbers"),
        (header("(1000000000000, 64)"), "no .npy file of numbers"),
        (header("(-1, 64)"), "no .npy file of numbers"),
        (b"", "no .npy file of numbers"),
        (np.ones((3, 4)) + 1j, "one row of numbers an image"),
        (np.array([["a", "b"]]), "one row of numbers an image"),
        (np.ones(4), "one row of numbers an image"),
        (np.full((3, 4), np.nan), "not finite"),
        (np.ones((3, 5)), "5 dimensions, generated ones 4"),
    ],
    ids=["objects", "pickle", "code", "promise", "negative", "empty", "complex", "text", "vector", "nan", "width"],
)
def test_raw_features_that_are_no_matrix_of_numbers_are_refused_and_nothing_is_unpickled(
    pogdiff: Command, tmp_path: Path, content: np.ndarray | bytes, said: str
) -> None:
    real, fake = tmp_path / "real.npy", tmp_path / "fake.npy"
    np.save(fake, np.ones((3, 4)))
    if isinstance(content, bytes):
        real.write_bytes(content)
    else:
        np.save(real, content, allow_pickle=True)
    ended = pogdiff("evaluate", "--real-features", real, "--fake-features", fake, "--json")
    assert (ended.status, ended.out) == (3, "")
    assert said in " ".join(ended.err.split())


def test_two_raw_images_have_distances_and_no_neighbourhoods(pogdiff: Command, tmp_path: Path) -> None:
    """Two points each: S = v v^T / 2, so the trace part is (|v|^2 + |w|^2) / 2 - |v . w|."""
    origin, v, w = np.array([1.0, 0.0, 2.0]), np.array([3.0, 0.0, 4.0]), np.array([1.0, 2.0, -2.0])
    np.save(tmp_path / "real.npy", np.stack([origin, origin + v]))
    np.save(tmp_path / "fake.npy", np.stack([origin, origin + w]))
    files = ("--real-features", tmp_path / "real.npy", "--fake-features", tmp_path / "fake.npy")
    ended = pogdiff("evaluate", *files, "--metrics", "fid,kid,prdc", "--json")
    values = json.loads(ended.out)
    assert values["fid"] == pytest.approx(float((v - w) @ (v - w)) / 4 + 34 / 2 - abs(float(v @ w)), rel=1e-12)
    assert values["kid"] is not None
    assert [values[name] for name in ("precision", "recall", "density", "coverage")] == [None] * 4


def test_doctor_names_what_is_missing_and_ends_in_4(project: TinyProject) -> None:
    whole = json.loads(project("doctor", "--json").out)["checks"]
    assert {check["state"] for check in whole} <= {"ok", "absent"}
    assert any("M parameters" in check["detail"] for check in whole if check["name"] == "memory")
    outcome = project("doctor", "--set", "evaluate.face=dlib")
    assert outcome.status == 4
    assert "missing" in outcome.out
