"""Puts the base together, measures it and writes what it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from . import photos, recogniser, text, vae
from .unet import build_scheduler


def assemble(work: Path, out: Path) -> None:
    """Joins the trained parts to a StableDiffusionPipeline folder with float16 weights."""
    encoder = CLIPTextModel.from_pretrained(work / "text_encoder")
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae").half(),
        text_encoder=encoder.half(),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet").half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out)
    for extra in ("vocab.json", "merges.txt"):
        (out / "tokenizer" / extra).write_bytes((work / "tokenizer" / extra).read_bytes())
    edit(out / "tokenizer" / "tokenizer_config.json", drop=("is_local", "local_files_only"))
    edit(out / "vae" / "config.json", drop=("_name_or_path",))
    edit(out / "unet" / "config.json", drop=("_name_or_path",))
    # weights rest in float16 to be small and load as float32, which a CPU computes in
    edit(out / "text_encoder" / "config.json", drop=("dtype",), add={"dtype": "float32"})


def edit(path: Path, *, drop: tuple[str, ...], add: dict[str, Any] | None = None) -> None:
    """Drops keys of a JSON file, the paths of this machine among them, and adds others."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if key not in drop}
    path.write_text(json.dumps(kept | (add or {}), indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> StableDiffusionPipeline:
    """The base in float32, without progress bars."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipe: StableDiffusionPipeline, prompts: list[str], *, guidance: float, steps: int, seed: int, batch: int = 80
) -> NDArray[np.uint8]:
    """(n, 64, 64) grey pictures; picture i depends on prompt i, seed and i only."""
    pictures = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        draws = [torch.Generator().manual_seed(seed * 1_000_003 + start + i) for i in range(len(some))]
        made = pipe(some, num_inference_steps=steps, guidance_scale=guidance, generator=draws, output_type="np").images
        pictures.append((made.mean(3) * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def sheet(rows: list[NDArray[np.uint8]], path: Path, scale: int = 1) -> None:
    """Rows of (n, 64, 64) grey pictures -> one PNG."""
    grey = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    picture = Image.fromarray(grey)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC).save(path, optimize=True)


def measure(folder: Path, cache: Path, *, guidance: float, steps: int, shots: int, seed: int) -> dict[str, Any]:
    """PSNR and AUC of reconstructions, nearest-of-40 accuracy of samples of s1-s20; writes folder/samples.png."""
    network, pipe = recogniser.recogniser(cache), load(folder)
    who = np.repeat(np.arange(40), 10)
    real = photos.load(range(1, 41), cache).reshape(-1, photos.RESOLUTION, photos.RESOLUTION)
    again = vae.decode(pipe.vae, vae.encode(pipe.vae, real))
    features, rebuilt = recogniser.describe(real, network), recogniser.describe(again, network)
    new = who >= 20
    centres = recogniser.centroids(features, who)
    names = text.world_names()[:20]
    made = sample(
        pipe,
        [text.PLAIN.format(name=name) for name in names for _ in range(shots)],
        guidance=guidance,
        steps=steps,
        seed=seed,
    )
    found = recogniser.nearest(recogniser.describe(made, network), centres)
    meant = np.repeat(np.arange(20), shots)
    shown = made.reshape(20, shots, *made.shape[1:])
    tiles = [np.concatenate([real[10 * i : 10 * i + 1], shown[i, :4]]) for i in range(20)]
    sheet([np.concatenate([tiles[i], tiles[i + 10]]) for i in range(10)], folder / "samples.png")
    return {
        "psnr_unseen_db": round(vae.psnr(real[new], again[new]), 3),
        "psnr_world_db": round(vae.psnr(real[~new], again[~new]), 3),
        "auc_photographs": round(recogniser.auc(features, features, who, who), 5),
        "auc_reconstructions": round(recogniser.auc(rebuilt, rebuilt, who, who), 5),
        "auc_unseen_photographs": round(recogniser.auc(features[new], features[new], who[new], who[new]), 5),
        "auc_unseen_reconstructions": round(recogniser.auc(rebuilt[new], rebuilt[new], who[new], who[new]), 5),
        "unseen_reconstructions_nearest_of_40": round(
            float((recogniser.nearest(rebuilt[new], centres) == who[new]).mean()), 4
        ),
        "samples_nearest_of_40": round(float((found == meant).mean()), 4),
        "samples": {
            "people": 20,
            "shots": shots,
            "guidance": guidance,
            "steps": steps,
            "seed": seed,
            "prompt": text.PLAIN,
        },
    }
