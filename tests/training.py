"""Eight records of two identities in memory, and a trainer on them for any family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pogdiff_cli.data.pairs import Pairs
from pogdiff_cli.data.sampling import RecordSampler
from pogdiff_cli.engine.batches import Batches, DrawSettings, HostBatch, TrainingRows
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.engine.encode import Form, encode_texts, text_key
from pogdiff_cli.engine.feed import on_device
from pogdiff_cli.engine.objectives import make_objective
from pogdiff_cli.engine.terms import Batch
from pogdiff_cli.engine.trainer import Places, Trainer
from pogdiff_cli.method import neighbour_weights
from pogdiff_cli.models.adapter import Adapter
from pogdiff_cli.project.config import TrainConfig

CAPTIONS = [f"A photo of {name} {i}." for name in ("Ada", "Grace") for i in range(4)]
SIZES = np.array([[64, 32], [32, 32], [48, 32], [32, 64]] * 2)  # height, width of the originals


def caches(adapter: Adapter, folder: Path, form: Form = "embeddings") -> tuple[TensorCache, TensorCache]:
    """Latents around one point an identity, and the captions as the family encodes them."""
    latents, texts = TensorCache(folder / "latents"), TensorCache(folder / form)
    shape = adapter.latent_shape(32)
    torch.manual_seed(0)
    people = torch.randn(2, *shape)
    entries = {
        str(i): {"mean": people[i // 4] + 0.1 * torch.randn(shape), "std": torch.full(shape, 0.01)} for i in range(8)
    }
    latents.add(entries)
    encode_texts(texts, adapter, [*CAPTIONS, ""], form=form)
    return latents, texts


class OneBatch(Batches):
    """The same draws at every step."""

    def __getitem__(self, item: int) -> list[HostBatch]:
        del item
        return super().__getitem__(0)


def trainer(adapter: Adapter, folder: Path, *, kind: type[Batches] = Batches, **keys: Any) -> Trainer:
    """A run of the family with ``train`` keys changed; its draws include neighbours, dropout and transfers."""
    train = TrainConfig(
        **(
            {"max_train_steps": 4, "train_batch_size": 4, "mixed_precision": "no", "logging_steps": 1, "roulette": None}
            | keys
        )
    )
    identity = np.repeat(np.arange(2, dtype=np.int32), 4)
    rows = np.array([[j for j in range(8) if j != i][:3] for i in range(8)])
    similarities = np.full(rows.shape, 0.5, dtype=np.float32)
    form: Form = "tokens" if train.train_text_encoder else "embeddings"
    latents, texts = caches(adapter, folder / "caches", form)
    batches = kind(
        rows=TrainingRows(
            latents=latents.locate(str(i) for i in range(8)),
            texts=texts.locate(text_key(caption) for caption in CAPTIONS),
            empty_text=int(texts.locate([text_key("")])[0]),
            identity=identity,
            loss_weight=np.ones(8),
            pairs=Pairs(
                rows=rows,
                similarities=similarities,
                weights=neighbour_weights(similarities),
                identity=identity,
                texts=CAPTIONS,
            ),
            inverse_density=np.full(8, 2.0),
            log_density=np.linspace(-1, 1, 8),
            image_condition=adapter.image_condition(SIZES, np.zeros_like(SIZES), np.full_like(SIZES, 32)),
        ),
        settings=DrawSettings(
            method=train.method,
            seed=0,
            global_batch=train.train_batch_size,
            rows_per_micro_batch=train.train_batch_size,
            timesteps=adapter.timesteps,
            times=adapter.times,
            caption_dropout=train.caption_dropout,
            noise_offset=train.noise_offset,
            a1=train.a1,
            a2=train.a2,
            psi_terms=train.psi_terms,
            roulette=train.roulette,
            cbdm_drop=train.cbdm_drop,
            cbdm_uniform=train.cbdm_uniform,
        ),
        sampler=RecordSampler(identity, train.sampling, 0),
        latents=latents,
        texts=texts,
        micro_batches=1,
    )
    objective = make_objective(
        train.method,
        neighbour_grad=train.neighbour_grad,
        gamma=train.cbdm_gamma,
        target_of=adapter.target,
        preserving=adapter.variance_preserving,
    )
    places = Places(checkpoints=folder / "checkpoints", metrics=folder / "metrics.jsonl", tensorboard=None)
    return Trainer(adapter=adapter, objective=objective, batches=batches, train=train, places=places, fingerprint="one")


def batch_of(one: Trainer, item: int = 0) -> Batch:
    """The batch of one step, as the objective gets it."""
    (host,) = one.batches[item]
    return on_device(host, one.adapter, snr_gamma=one.train.snr_gamma, layout=torch.contiguous_format)


@torch.no_grad()
def loss_of(one: Trainer, item: int = 0) -> float:
    """The objective on one fixed batch, under the weights of now."""
    return float(one.objective(one.predict, batch_of(one, item)).value)
