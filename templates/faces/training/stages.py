"""The stages of train_base.py: each reads and writes the work folder, and is skipped when its result is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from . import judge, photos, provenance, synthetic, text, unet, vae


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that shapes the base; recorded in provenance.json."""

    seed: int = 0
    pseudo_people: int = 400
    pseudo_shots: int = 16
    vae_steps: int = 3000
    vae_batch: int = 16
    vae_rate: float = 2e-3
    vae_noise: float = 0.1  # largest deviation of the noise on the decoder's input
    vae_real_share: float = 0.7  # the rest are pseudo-people
    vocabulary: int = 2048  # at most
    unet_steps: int = 6000
    joint_steps: int = 1500  # with the text encoder; frozen afterwards
    unet_batch: int = 32
    unet_rate: float = 1e-3
    unet_real_share: float = 0.75
    variants: int = 6  # of each photograph, the first untouched; each also mirrored
    average_decay: float = 0.999
    caption_dropout: float = 0.1
    judge_guidance: float = 2.0
    judge_shots: int = 8  # pictures of each of s1-s20

    @classmethod
    def parse(cls, assignments: list[str]) -> Settings:
        """Applies KEY=VALUE texts to the defaults."""
        kinds = {field.name: type(field.default) for field in fields(cls)}
        changes = {}
        for key, value in (item.split("=", 1) for item in assignments):
            if key not in kinds:
                raise SystemExit(f"no setting {key!r}; there are: {', '.join(kinds)}")
            changes[key] = kinds[key](value)
        return replace(cls(), **changes)


def pseudo_people(settings: Settings, cache: Path, work: Path) -> np.ndarray:
    """(people, shots, 64, 64) grey levels, drawn once."""
    path = work / f"pseudo_people_{settings.pseudo_people}x{settings.pseudo_shots}_{settings.seed}.npy"
    if not path.exists():
        np.save(path, synthetic.people(settings.pseudo_people, settings.pseudo_shots, settings.seed, cache))
    return np.load(path, allow_pickle=False)


def run_assets(settings: Settings, cache: Path, work: Path, out: Path) -> None:
    """Everything that needs the network or the GAN."""
    photos.load(photos.WORLD, cache)
    pseudo_people(settings, cache, work)


def run_vae(settings: Settings, cache: Path, work: Path, out: Path) -> None:
    """Writes work/vae."""
    if (work / "vae").exists():
        return
    torch.manual_seed(settings.seed)
    made = pseudo_people(settings, cache, work)
    made = made.reshape(-1, *made.shape[2:])
    real = vae.augmented(cache, 40, settings.seed)
    world = photos.load(photos.WORLD, cache).reshape(-1, *made.shape[1:])
    unseen = photos.load(photos.NEW, cache).reshape(-1, *made.shape[1:])
    model = vae.build()
    vae.write_encoder(model, np.concatenate([world, world[:, :, ::-1], real[::8], made[:: settings.pseudo_shots]]))
    # photographs as they are count four times a shifted one's weight: they are what the denoiser will draw
    greys = np.concatenate([world, world[:, :, ::-1], real, made])
    weights = np.concatenate([np.full(400, 4.0), np.ones(len(real)), np.zeros(len(made))])
    weights *= settings.vae_real_share / weights.sum()
    weights[-len(made) :] = (1 - settings.vae_real_share) / len(made)
    vae.train_decoder(
        model,
        np.ascontiguousarray(greys),
        weights,
        unseen,
        steps=settings.vae_steps,
        batch=settings.vae_batch,
        rate=settings.vae_rate,
        noise=settings.vae_noise,
        seed=settings.seed,
        folder=work,
    )
    model.eval().save_pretrained(work / "vae")


def load_vae(work: Path) -> AutoencoderKL:
    """The trained autoencoder in float32."""
    return AutoencoderKL.from_pretrained(work / "vae").eval().requires_grad_(False)


def load_world(settings: Settings, cache: Path, work: Path) -> unet.World:
    """Latents of s1-s20 and of the pseudo-people, with their names and words."""
    made = pseudo_people(settings, cache, work)
    real, index, flips = unet.jittered(cache, settings.variants, settings.seed)
    path = work / "latents.safetensors"
    if not path.exists():
        model = load_vae(work)
        save_file({"real": vae.encode(model, real), "made": vae.encode(model, made.reshape(-1, *made.shape[2:]))}, path)
    latents = load_file(path)
    return unet.make_world(latents["real"], index, flips, latents["made"], settings.pseudo_shots)


def run_unet(settings: Settings, cache: Path, work: Path, out: Path) -> None:
    """Writes work/unet, work/text_encoder and work/tokenizer."""
    if (work / "unet").exists():
        return
    tokenizer = text.train_tokenizer(work / "tokenizer", settings.vocabulary)
    world = load_world(settings, cache, work)
    torch.manual_seed(settings.seed)
    encoder = text.build_text_encoder(tokenizer).train()
    denoiser = unet.build_unet(vae.LATENT, encoder.config.hidden_size).train()
    unet.train(
        denoiser,
        encoder,
        tokenizer,
        world,
        steps=settings.unet_steps,
        joint_steps=settings.joint_steps,
        batch=settings.unet_batch,
        real_share=settings.unet_real_share,
        rate=settings.unet_rate,
        decay=settings.average_decay,
        dropout=settings.caption_dropout,
        seed=settings.seed,
        folder=work,
    )
    encoder.eval().save_pretrained(work / "text_encoder")
    denoiser.eval().save_pretrained(work / "unet")


def run_judge(settings: Settings, cache: Path, work: Path, out: Path) -> None:
    """Writes the base, its measurements, its log and its provenance to the out folder."""
    judge.assemble(work, out)
    figures = judge.measure(
        out, cache, guidance=settings.judge_guidance, steps=50, shots=settings.judge_shots, seed=settings.seed
    )
    log = (work / "training_log.jsonl").read_bytes()
    (out / "training_log.jsonl").write_bytes(log)
    record = provenance.describe(out, asdict(settings), log.decode().splitlines(), figures)
    (out / "provenance.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


RUN: dict[str, Callable[[Settings, Path, Path, Path], None]] = {
    "assets": run_assets,
    "vae": run_vae,
    "unet": run_unet,
    "judge": run_judge,
}
