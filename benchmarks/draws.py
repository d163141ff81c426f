"""A training step with a million records against one with a thousand: the draws, the caches and the model.

Latents and captions of the `faces` template's size are written to real caches; five records share a caption.
Blocks of steps on the few and on the many alternate; a step draws its rows, reads their tensors, predicts both branches
of PoGDiff and takes an optimizer step of the template's own UNet.

    python -m benchmarks.draws [--few 1000] [--many 1000000] [--rounds 7] [--scratch DIR] [--results DIR]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from benchmarks import results
from benchmarks.ratios import Target, ratio
from pogdiff_cli.data.pairs import Pairs
from pogdiff_cli.data.sampling import RecordSampler
from pogdiff_cli.engine.batches import Batches, DrawSettings, HostBatch, TrainingRows
from pogdiff_cli.engine.cache import TensorCache

LATENT = (12, 8, 8)
TOKENS = 24
ROWS, K, PER_IDENTITY, SHARING = 16, 5, 20, 5
SHARD = 256
DRAWS: dict[str, Any] = {
    "method": "pogdiff",
    "seed": 0,
    "global_batch": ROWS,
    "rows_per_micro_batch": ROWS,
    "timesteps": 1000,
    "caption_dropout": 0.1,
    "noise_offset": 0.0,
    "a1": 1.0,
    "a2": 1.0,
    "psi_terms": ("img_sim", "inv_density"),
    "roulette": None,  # every row's neighbour: both sides compute as much
    "cbdm_drop": 0.1,
    "cbdm_uniform": "record",
}
SAME = Target(relation="at most", bound=1.05)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="steps a block; ten times as many draws")
    parser.add_argument("--scratch", help="folder for the caches: 9 kB a record")
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    options = parser.parse_args(arguments)
    unet = UNet2DConditionModel.from_pretrained(results.ROOT / "templates" / "faces" / "base" / "unet")
    width = int(unet.config["cross_attention_dim"])
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        made = {n: _batches(Path(scratch) / str(n), n, width) for n in (options.few, options.many)}
        step = _stepper(unet)
        figures = []
        for what, act, count in (
            ("draws", lambda batch: None, 10 * options.steps),
            ("step", step, options.steps),
        ):
            seconds: dict[int, list[float]] = {options.few: [], options.many: []}
            for number in range(options.rounds + 1):  # the first round warms up
                turns = list(made.items())[:: -1 if number % 2 else 1]  # neither is always the first
                for n, batches in turns:
                    seconds[n].append(_block(batches, act, first=1 + number * count, steps=count))
            few, many = seconds[options.few][1:], seconds[options.many][1:]
            print(f"{what}: {1000 * min(few):.2f} and {1000 * min(many):.2f} ms at best")
            label = f"{what}: {options.many:,} records over {options.few:,}"
            figures.append(ratio(f"{what}_time", label, many, few, SAME if what == "step" else None))
    for figure in figures:
        print(figure.line())
    details = {"few": options.few, "many": options.many, "rows": ROWS, "latent": LATENT, "tokens": TOKENS}
    title = "A step and the number of records"
    print(results.write("draws", title=title, figures=figures, details=details, folder=options.results))
    return 0 if all(figure.met is not False for figure in figures) else 1


def _block(batches: Batches, act: Callable[[HostBatch], None], *, first: int, steps: int) -> float:
    """Seconds a step."""
    started = time.perf_counter()
    for step in range(first, first + steps):
        for batch in batches[step]:
            act(batch)
    return (time.perf_counter() - started) / steps


def _stepper(unet: UNet2DConditionModel) -> Callable[[HostBatch], None]:
    unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=True)

    def step(batch: HostBatch) -> None:
        rows, x, t, hidden = batch.neighbour_rows, batch.x0 + batch.noise, batch.t, batch.condition["hidden"]
        if batch.neighbour is not None:
            x, t = torch.cat([x, x[rows]]), torch.cat([t, t[rows]])
            hidden = torch.cat([hidden, batch.neighbour["hidden"]])
        unet(x, t, hidden).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _batches(folder: Path, n: int, width: int) -> Batches:
    latents, texts = TensorCache(folder / "latents"), TensorCache(folder / "texts")
    draw = torch.Generator().manual_seed(0)
    for start in range(0, n, SHARD):
        own = range(start, min(start + SHARD, n))
        mean = torch.randn(len(own), *LATENT, generator=draw)
        latents.add({str(i): {"mean": mean[i - start], "std": mean[i - start].abs()} for i in own})
        captions = [i for i in own if i % SHARING == 0]
        hidden = torch.randn(len(captions), TOKENS, width, generator=draw)
        texts.add({str(i): {"condition.hidden": row} for i, row in zip(captions, hidden, strict=True)})
    texts.add({"": {"condition.hidden": torch.zeros(TOKENS, width)}})
    names = [str(i) for i in range(n)]
    identity = np.arange(n, dtype=np.int32) // PER_IDENTITY
    own_texts = texts.locate([str(i - i % SHARING) for i in range(n)])
    numbers = np.random.default_rng(0)
    others = (np.arange(n)[:, None] + 1 + numbers.integers(0, n - 1, size=(n, K))) % n
    return Batches(
        rows=TrainingRows(
            latents=latents.locate(names),
            texts=own_texts,
            empty_text=int(texts.locate([""])[0]),
            identity=identity,
            loss_weight=np.ones(n),
            pairs=Pairs(
                rows=others,
                similarities=np.full((n, K), 0.9, dtype=np.float32),
                weights=np.full((n, K), 1.0 / K),
                identity=identity,
                texts=own_texts,
            ),
            inverse_density=numbers.uniform(0.5, 2.0, size=n),
        ),
        settings=DrawSettings(**DRAWS),
        sampler=RecordSampler(identity, "natural", 0),
        latents=latents,
        texts=texts,
        micro_batches=1,
    )


if __name__ == "__main__":
    sys.exit(main())
