"""Images that are not square, in every family: the denoiser sees them as the family's own pipeline shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyProject, write_pictures
from families import SAVE
from PIL import Image
from test_families import own_pipeline

from pogdiff_cli.data.images import placements
from pogdiff_cli.errors import Exit
from pogdiff_cli.models.adapter import FamilyOptions
from pogdiff_cli.models.families import open_backbone
from pogdiff_cli.models.flux import pack, unpack

CPU = torch.device("cpu")
WIDTH, HEIGHT = 80, 48


@pytest.mark.parametrize("name", list(SAVE))
def test_a_wide_image_is_seen_as_the_family_s_own_pipeline_shows_it(name: str, folders: Callable[[str], Path]) -> None:
    options = None if name.startswith("sd-") or name in ("sd", "sdxl") else FamilyOptions(max_token_length=16)
    adapter, pipeline = open_backbone(folders(name), device=CPU, options=options), own_pipeline(folders(name))
    channels = adapter.latent_shape(32)[0]
    noise = torch.randn(1, channels, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[dict[str, Any], torch.Tensor]] = []

    def watch(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        del module
        names = ("sample", "timestep")
        seen.append(({**dict(zip(names, arguments, strict=False)), **keywords}, output[0]))

    getattr(pipeline, adapter.denoiser_name).register_forward_hook(watch, with_kwargs=True)
    further = {"max_sequence_length": 16} if options else {}
    pipeline(
        "Ada",
        latents=pack(noise) if name == "flux" else noise,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=1,
        guidance_scale=1.0,
        output_type="latent",
        **further,
    )
    (call, output), *_ = seen
    if name == "flux":
        x_t = unpack(call["hidden_states"], HEIGHT // 8, WIDTH // 8)
        t, expected = call["timestep"] * adapter.timesteps, unpack(output, HEIGHT // 8, WIDTH // 8)
    else:
        x_t, t, expected = call.get("hidden_states", call.get("sample")), call["timestep"], output
    assert x_t.shape == noise.shape
    with torch.no_grad():
        found = adapter.predict(
            adapter.load_denoiser().eval(), x_t, t.reshape(1).expand(1), adapter.encode_text(["Ada"]).condition
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # and rows are no columns: the picture on its side is another picture
        turned = adapter.predict(
            adapter.load_denoiser().eval(), x_t.mT, t.reshape(1).expand(1), adapter.encode_text(["Ada"]).condition
        )
    assert (turned.mT - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name", ["sd3", "flux", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd", "sdxl"))]
)
def test_images_of_several_aspects_train_and_sample_in_every_family(
    name: str, folders: Callable[[str], Path], project: TinyProject
) -> None:
    images = write_pictures(project.root / "mixed", {"Ada": 4, "Grace": 3})
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        with Image.open(path) as image:
            changed = image.resize([(60, 36), (64, 64), (40, 80)][number % 3])
        changed.save(path)
    short = () if name in ("sd", "sdxl") else ("train.max_token_length=16",)
    one = project.configure(
        f"pretrained_model_name_or_path={folders(name)}",
        "data.images=mixed",
        "data.resize=bucket",
        "data.resolution=64",
        "train.max_train_steps=2",
        "train.method=vanilla",
        "sample.images_per_identity=1",
        *short,
    )
    assert one("inspect").status == 0
    facts = json.loads((project.root / "inspect.json").read_text())
    wide, upright = ("80x48", "48x96") if short else ("80x48", "48x88")
    assert facts["buckets"] == {wide: 3, "64x64": 2, upright: 2}
    for command in ("train", "sample"):
        ended = one(command, "--gpus", "none")
        assert ended.status == 0, ended.err
    exposure = json.loads((project.root / "runs/vanilla/exposure.json").read_text())
    assert sum(exposure.values()) == 2 * 4
    drawn = sorted((project.root / "runs/vanilla/samples").glob("*/*.png"))
    assert len(drawn) == 2
    for path in drawn:
        with Image.open(path) as image:
            assert image.size == (64, 64)


def test_the_kept_part_of_an_image_has_sides_that_the_family_takes() -> None:
    sizes = np.array([[1200, 800], [800, 1200], [900, 1000]])
    kept = placements(sizes, resolution=192, resize="bucket", multiple=16)
    assert (kept.size % 16 == 0).all()
    scale = (kept.size / sizes).max(axis=1, keepdims=True)
    assert np.allclose(kept.corner, (sizes * scale - kept.size) / 2, atol=0.5)


def test_a_resolution_that_a_family_does_not_take_is_said_before_training(
    folders: Callable[[str], Path], project: TinyProject
) -> None:
    one = project.configure(f"pretrained_model_name_or_path={folders('flux')}", "train.max_token_length=16")
    refused = one("train", "--gpus", "none", "--method", "vanilla", "--set", "data.resolution=72")
    assert refused.status == Exit.USAGE
    assert "multiple of 16, not 72" in refused.err
    assert "Set data.resolution to 64" in refused.err
