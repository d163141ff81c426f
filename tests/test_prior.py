"""Prior preservation: the term it adds, the draws of its rows, and where images of the class come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyProject
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from training import trainer

from pogdiff_cli.engine.batches import Batches, TrainingRows
from pogdiff_cli.engine.memory import in_pieces
from pogdiff_cli.engine.prior import PriorBatches, PriorSampler, prior_settings
from pogdiff_cli.engine.trainer import Trainer
from pogdiff_cli.errors import Exit
from pogdiff_cli.models.families import open_backbone

CPU = torch.device("cpu")
COUNT = 3


def prior_of(main: Batches, **changes: Any) -> PriorBatches:
    """Three of the records, under the empty caption, in the part of images of the class."""
    rows = TrainingRows(
        latents=main.rows.latents[:COUNT],
        texts=np.full(COUNT, main.rows.empty_text),
        empty_text=main.rows.empty_text,
        identity=np.zeros(COUNT, dtype=np.int32),
        loss_weight=np.ones(COUNT),
        image_condition={name: values[:COUNT] for name, values in main.rows.image_condition.items()},
    )
    columns = {"micro_batches": main.micro_batches, "rank": main.rank, "world": main.world} | changes
    settings = replace(prior_settings(main.settings), **({} if not changes else sizes(main, columns)))
    return PriorBatches(
        rows=rows,
        settings=settings,
        sampler=PriorSampler(count=COUNT, seed=main.settings.seed),  # type: ignore[arg-type]
        latents=main.latents,
        texts=main.texts,
        **columns,
    )


def sizes(main: Batches, columns: dict[str, int]) -> dict[str, int]:
    return {"rows_per_micro_batch": main.settings.global_batch // (columns["micro_batches"] * columns["world"])}


def run_of(folder: Path, base: Path, *, prior: bool = True, **keys: Any) -> Trainer:
    one = trainer(open_backbone(base, device=CPU), folder, **{"snr_gamma": 5.0} | keys)
    if prior:
        one.batches.prior = prior_of(one.batches)
    return one


class Caught:
    """In place of the optimizer's step: the gradients of one."""

    def __init__(self, one: Trainer) -> None:
        self.one, self.gradients = one, list[Tensor]()

    def __call__(self, parameters: list[torch.nn.Parameter]) -> tuple[Tensor, Tensor]:
        self.gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        self.one.optimizer.zero_grad()
        return torch.zeros(()), torch.ones((), dtype=torch.bool)


def gradient(one: Trainer) -> list[Tensor]:
    caught = Caught(one)
    one.guard = caught  # type: ignore[assignment]
    one.optimise(one.batches[0])
    return caught.gradients


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
@pytest.mark.parametrize("method", ["pogdiff", "vanilla"])
def test_the_gradient_is_that_of_the_data_and_the_weighted_one_of_the_class(
    method: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    weight = 0.3
    keys = {"method": method, "prior_loss_weight": weight}
    alone = gradient(run_of(tmp_path / "alone", folders("sdxl"), prior=False, **keys))
    both_run = run_of(tmp_path / "both", folders("sdxl"), **keys)
    both = gradient(both_run)
    # by hand: weight * mean over prior rows of w(t) mean|h - target|^2
    assert both_run.batches.prior is not None
    (host,) = both_run.batches.prior[0]
    assert host.neighbour is None
    adapter = both_run.adapter
    x_t = adapter.add_noise(host.x0, host.noise, host.t)
    h = adapter.predict(both_run.denoiser, x_t, host.t, host.condition)
    error = (h - adapter.target(host.x0, host.noise, host.t)).square().flatten(1).mean(dim=1)
    (weight * (adapter.snr_weight(host.t, 5.0) * error).mean()).backward()
    for name, p, of_both, of_data in zip(both_run.trainable, both_run.trainable.values(), both, alone, strict=True):
        of_class = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(of_both, of_data + of_class, rtol=1e-3, atol=1e-6, msg=name)
    assert any(float((a - b).norm()) > 1e-2 * float(b.norm()) for a, b in zip(both, alone, strict=True))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_pieces_for_want_of_memory_teach_the_same(folders: Callable[[str], Path], tmp_path: Path) -> None:
    whole, cut = (run_of(tmp_path / str(i), folders("sd"), prior_loss_weight=0.3) for i in range(2))
    cut.pieces = 4
    for a, b in zip(gradient(whole), gradient(cut), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    (host,) = prior_of(whole.batches)[0]
    assert {piece.kind for piece in in_pieces(host, 2)} == {"prior"}


def test_prior_rows_have_draws_of_their_own_that_no_split_changes(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    main = run_of(tmp_path, folders("sd"), train_batch_size=4).batches
    (whole,) = prior_of(main)[5]
    (data,) = main.draw(5, main.slots(0))
    assert not torch.equal(whole.t, data.t)
    assert not torch.equal(whole.noise, data.noise)
    assert np.isin(whole.rows, range(COUNT)).all()
    halves = [prior_of(main, micro_batches=2)[10 + micro][0] for micro in range(2)]
    ranks = [prior_of(main, world=2, rank=rank)[5][0] for rank in range(2)]
    for parts in (halves, ranks):
        assert np.array_equal(np.concatenate([part.rows for part in parts]), whole.rows)
        for name in ("x0", "noise", "t"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_every_class_image_is_as_likely() -> None:
    rows = PriorSampler(count=5, seed=3).rows(0, np.arange(20_000), 0)
    assert np.abs(np.bincount(rows, minlength=5) / 4000 - 1).max() < 0.06  # four standard deviations


def test_a_resumed_run_ends_in_the_same_bits(folders: Callable[[str], Path], tmp_path: Path) -> None:
    keys = {"checkpointing_steps": 2, "prior_loss_weight": 0.5}
    whole = run_of(tmp_path, folders("sd"), **keys)
    whole.run()
    resumed = run_of(tmp_path, folders("sd"), **keys, resume_from_checkpoint="checkpoint-000002")
    assert resumed.resume() == 2
    resumed.run()
    assert all(torch.equal(p, resumed.trainable[name]) for name, p in whole.trainable.items())
    without = run_of(tmp_path / "without", folders("sd"), prior=False)
    without.run()
    assert any(not torch.equal(p, without.trainable[name]) for name, p in whole.trainable.items())


# the command line


def pictures(project: TinyProject) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (project.root / "artifacts/cache/class").rglob("*.png")}


def final(project: TinyProject, run: str) -> dict[str, Tensor]:
    return load_file(project.root / "runs" / run / "final" / "unet" / "diffusion_pytorch_model.safetensors")


DRAWN = (
    "train.method=vanilla",
    "train.max_train_steps=1",
    "train.num_class_images=3",
    'train.class_prompts=["a face"]',
)


def test_class_images_are_drawn_once_and_only_where_they_are_missing(project: TinyProject) -> None:
    one = project.configure(*DRAWN)
    outcome = one("train", "--name", "a")
    assert outcome.status == 0, outcome.err
    drawn = pictures(one)
    assert len(drawn) == 3
    assert len(set(drawn.values())) == 3
    gone = sorted(drawn)[1]
    gone.unlink()
    stamps = {path: path.stat().st_mtime_ns for path in drawn if path != gone}
    assert one("train", "--name", "b").status == 0
    assert pictures(one) == drawn  # the one that was missing has its bits again
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert all(torch.equal(value, final(one, "b")[name]) for name, value in final(one, "a").items())


@pytest.mark.slow
def test_a_weight_of_zero_is_the_run_without_a_prior(project: TinyProject) -> None:
    one = project.configure(*DRAWN)
    outcome = one("train", "--name", "off", "--set", "train.prior_loss_weight=0")
    assert outcome.status == 0, outcome.err
    assert pictures(one) == {}
    assert one("train", "--name", "plain", "--set", "train.class_prompts=[]").status == 0
    assert all(torch.equal(value, final(one, "plain")[name]) for name, value in final(one, "off").items())
    rehearsed = one("train", "--name", "c", "--dry-run", "--json")
    assert rehearsed.status == 0, rehearsed.err
    assert one("train", "--name", "a").status == 0
    assert any(not torch.equal(value, final(one, "plain")[name]) for name, value in final(one, "a").items())


def test_a_user_s_class_images_are_an_input(project: TinyProject, tmp_path: Path) -> None:
    own = tmp_path / "faces"
    own.mkdir()
    one = project.configure(
        "train.method=vanilla", "train.max_train_steps=1", f"train.class_images={own}", 'train.class_prompts=["a face"]'
    )
    empty = one("train")
    assert empty.status == Exit.DATA
    assert "no image" in empty.err
    for i in range(2):
        Image.new("RGB", (40, 32), (90 * i, 20, 30)).save(own / f"{i}.png")
    outcome = one("train")
    assert outcome.status == 0, outcome.err
    assert pictures(one) == {}
    assert "up to date" in one("status").out
    Image.new("RGB", (40, 32), (1, 2, 3)).save(own / "0.png")
    assert "class images changed" in one("status").out
    nameless = one("train", "--name", "other", "--set", "train.class_prompts=[]")
    assert nameless.status == Exit.USAGE
    assert "class_images need" in nameless.err
