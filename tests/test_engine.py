"""Training on a tiny model: what is learnt, what is skipped, what survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pogdiff_cli.data.pairs import Pairs
from pogdiff_cli.data.sampling import RecordSampler
from pogdiff_cli.engine import checkpoint
from pogdiff_cli.engine.batches import Batches, DrawSettings, TrainingRows
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.engine.encode import encode_texts, text_key
from pogdiff_cli.engine.objectives import make_objective
from pogdiff_cli.engine.trainer import Places, Trainer
from pogdiff_cli.engine.tuning import load_final, write_final
from pogdiff_cli.engine.window import Window
from pogdiff_cli.errors import Exit, PogdiffError, Stopped
from pogdiff_cli.method import neighbour_weights
from pogdiff_cli.models.stable_diffusion import StableDiffusion
from pogdiff_cli.project.config import TrainConfig

CAPTIONS = [f"A photo of {name} {i}." for name in ("Ada", "Grace") for i in range(4)]


@pytest.fixture(scope="session")
def adapter(tiny_sd: Path) -> StableDiffusion:
    return StableDiffusion(tiny_sd, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def caches(adapter: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TensorCache]:
    folder = tmp_path_factory.mktemp("caches")
    latents, texts = TensorCache(folder / "latents"), TensorCache(folder / "texts")
    torch.manual_seed(0)
    people = torch.randn(2, 4, 4, 4)
    latents.add(
        {
            f"{i}": {"mean": people[i // 4] + 0.1 * torch.randn(4, 4, 4), "std": torch.full((4, 4, 4), 0.01)}
            for i in range(8)
        }
    )
    encode_texts(texts, adapter, [*CAPTIONS, ""])
    return {"latents": latents, "texts": texts}


def batches(caches: dict[str, TensorCache], train: TrainConfig, **changes: Any) -> Batches:
    identity = np.repeat(np.arange(2, dtype=np.int32), 4)
    rows = np.array([[j for j in range(8) if j != i][:3] for i in range(8)])
    similarities = np.full(rows.shape, 0.5, dtype=np.float32)
    pairs = Pairs(
        rows=rows, similarities=similarities, weights=neighbour_weights(similarities), identity=identity, texts=CAPTIONS
    )
    settings: dict[str, Any] = {
        "method": train.method,
        "seed": 0,
        "global_batch": train.train_batch_size * train.gradient_accumulation_steps,
        "rows_per_micro_batch": train.train_batch_size,
        "timesteps": 1000,
        "caption_dropout": train.caption_dropout,
        "noise_offset": train.noise_offset,
        "a1": train.a1,
        "a2": train.a2,
        "psi_terms": train.psi_terms,
        "roulette": train.roulette,
        "cbdm_drop": train.cbdm_drop,
        "cbdm_uniform": train.cbdm_uniform,
    }
    return Batches(
        rows=TrainingRows(
            latents=caches["latents"].locate(str(i) for i in range(8)),
            texts=caches["texts"].locate(text_key(caption) for caption in CAPTIONS),
            empty_text=int(caches["texts"].locate([text_key("")])[0]),
            identity=identity,
            loss_weight=np.ones(8),
            pairs=pairs,
            inverse_density=np.full(8, 2.0),
            log_density=np.linspace(-1, 1, 8),
        ),
        settings=DrawSettings(**(settings | changes)),
        sampler=RecordSampler(identity, train.sampling, 0),
        latents=caches["latents"],
        texts=caches["texts"],
        micro_batches=train.gradient_accumulation_steps,
    )


def trainer(
    adapter: StableDiffusion, caches: dict[str, TensorCache], folder: Path, *, fingerprint: str = "f", **keys: Any
) -> Trainer:
    train = TrainConfig(
        **({"max_train_steps": 6, "train_batch_size": 4, "mixed_precision": "no", "logging_steps": 1} | keys)
    )
    objective = make_objective(
        train.method, neighbour_grad=train.neighbour_grad, gamma=train.cbdm_gamma, target_of=adapter.target
    )
    places = Places(checkpoints=folder / "checkpoints", metrics=folder / "metrics.jsonl", tensorboard=None)
    return Trainer(
        adapter=adapter,
        objective=objective,
        batches=batches(caches, train),
        train=train,
        places=places,
        fingerprint=fingerprint,
    )


def weights(one: Trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in one.trainable.items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["vanilla", "pogdiff", "cbdm", "t2h"])
def test_every_method_halves_the_loss_of_a_batch_it_sees_often(
    method: str, adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path
) -> None:
    one = trainer(
        adapter, caches, tmp_path, method=method, max_train_steps=80, learning_rate=3e-3, checkpointing_steps=1000
    )
    one.run()
    losses = [line["denoise"] for line in logged(tmp_path)]
    assert np.mean(losses[-15:]) < 0.5 * np.mean(losses[:5])


def test_lora_trains_its_own_weights_only_and_is_read_back(
    adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path
) -> None:
    one = trainer(adapter, caches, tmp_path, tuning="lora", rank=4, learning_rate=1e-2, lora_targets=("to_q", "to_k"))
    assert all("lora_" in name for name in one.trainable)
    one.run()
    final = one.final_denoiser()
    (tmp_path / "final").mkdir()
    write_final(adapter, final, tmp_path / "final", "lora")
    again = load_final(adapter, tmp_path / "final").eval()
    torch.manual_seed(1)
    x_t, t = torch.randn(2, 4, 4, 4), torch.tensor([10, 500])
    condition = {"hidden": torch.randn(2, 77, 32)}
    with torch.no_grad():
        expected = adapter.predict(final, x_t, t, condition)
        base = adapter.predict(adapter.load_denoiser().eval(), x_t, t, condition)
        assert torch.allclose(adapter.predict(again, x_t, t, condition), expected, atol=1e-5)
    assert not torch.allclose(base, expected, atol=1e-4)


@pytest.mark.parametrize("keys", [{}, {"use_ema": True}, {"lr_scheduler": "cosine"}, {"tuning": "lora"}])
def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bits(
    keys: dict[str, Any], adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path
) -> None:
    torch.manual_seed(3)  # LoRA's start is drawn from the global generator: both runs begin alike
    whole = trainer(adapter, caches, tmp_path / "whole", **keys)
    start = weights(whole)
    whole.run()

    torch.manual_seed(3)
    first = trainer(adapter, caches, tmp_path / "parts", **keys)
    assert same(weights(first), start)

    def stop(step: int, denoiser: torch.nn.Module) -> dict[str, float]:
        del denoiser
        if step == 3:
            raise Stopped(Exit.TERMINATED, step)
        return {}

    first.train = first.train.model_copy(update={"checkpointing_steps": 2})
    with pytest.raises(Stopped):
        first.run(at_step=[stop])
    second = trainer(adapter, caches, tmp_path / "parts", **keys)
    assert second.resume() == 2
    second.run()
    assert same(weights(second), weights(whole))
    steps = [line["step"] for line in logged(tmp_path / "parts")]
    assert steps == [1, 2, 3, 4, 5, 6]
    if second.ema is not None and whole.ema is not None:
        pairs = zip(second.ema.shadow_params, whole.ema.shadow_params, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_moving_average_moves_and_is_not_the_last_step(
    adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path
) -> None:
    one = trainer(adapter, caches, tmp_path, use_ema=True, ema_decay=0.5, learning_rate=1e-2)
    start, _ = weights(one), one.run()
    last = weights(one)
    one.final_denoiser()
    kept = weights(one)
    assert not same(kept, start)
    assert not same(kept, last)


def test_a_split_into_micro_batches_draws_the_same_and_learns_the_same(
    adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path
) -> None:
    whole = trainer(adapter, caches, tmp_path / "a", train_batch_size=4)
    parts = trainer(adapter, caches, tmp_path / "b", train_batch_size=2, gradient_accumulation_steps=2)
    whole.run()
    parts.run()
    for name, tensor in weights(whole).items():
        assert torch.allclose(tensor, weights(parts)[name], rtol=1e-4, atol=2e-5), name


def test_logged_means_and_seconds_are_those_of_steps_not_of_micro_batches(
    caches: dict[str, TensorCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 6.0])
    monkeypatch.setattr("pogdiff_cli.engine.window.time.monotonic", lambda: next(clock))
    made = batches(caches, TrainConfig(train_batch_size=2, gradient_accumulation_steps=2))
    window = Window()
    for step in range(3):
        window.add({"denoise": torch.tensor(float(step))}, [*made[2 * step], *made[2 * step + 1]])
    means = window.means()
    assert means["denoise"] == pytest.approx(1.0)
    assert means["seconds_per_step"] == pytest.approx(2.0)


def test_checkpoints_of_other_settings_are_not_gone_on_with(
    adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path
) -> None:
    trainer(adapter, caches, tmp_path).run()
    assert trainer(adapter, caches, tmp_path, fingerprint="another").resume() == 0
    named = trainer(adapter, caches, tmp_path, fingerprint="another", resume_from_checkpoint="checkpoint-000006")
    with pytest.raises(PogdiffError, match="other settings") as refusal:
        named.resume()
    assert refusal.value.exit_code == Exit.MISSING


def test_a_damaged_checkpoint_is_passed_over_and_refused_by_name(
    adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path
) -> None:
    trainer(adapter, caches, tmp_path, checkpointing_steps=3).run()
    newest = tmp_path / "checkpoints" / "checkpoint-000006" / "weights.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert trainer(adapter, caches, tmp_path).resume() == 3
    with pytest.raises(PogdiffError, match="damaged"):
        trainer(adapter, caches, tmp_path, resume_from_checkpoint="checkpoint-000006").resume()


def test_older_checkpoints_go_only_after_the_new_one_is_whole(
    adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(adapter, caches, tmp_path, max_train_steps=3, checkpoints_total_limit=1).run()
    folder = tmp_path / "checkpoints"

    def crash(*arguments: object, **keys: object) -> None:
        raise OSError("power failure")

    monkeypatch.setattr(checkpoint, "save_file", crash)
    one = trainer(adapter, caches, tmp_path, checkpoints_total_limit=1)
    one.resume()
    with pytest.raises(OSError, match="power failure"):
        one.run()
    monkeypatch.undo()
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["checkpoint-000003"]
    assert trainer(adapter, caches, tmp_path).resume() == 3


def test_nothing_in_a_checkpoint_is_pickled(
    adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path
) -> None:
    one = trainer(adapter, caches, tmp_path, use_ema=True)
    one.run()
    names = {path.name for path in (tmp_path / "checkpoints" / "checkpoint-000006").iterdir()}
    assert names == {"weights.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "digests.json"}


def test_a_loss_that_is_not_finite_leaves_the_weights_alone_and_then_ends_the_run(
    adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path
) -> None:
    one = trainer(adapter, caches, tmp_path)
    start = weights(one)
    one.network.adapter = _Poisoned(adapter)  # type: ignore[assignment]
    with pytest.raises(PogdiffError, match="not finite 5 times") as failure:
        one.run()
    assert failure.value.exit_code == Exit.NON_FINITE
    assert same(weights(one), start)


def test_one_bad_step_is_skipped_and_counted(
    adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path
) -> None:
    one = trainer(adapter, caches, tmp_path)
    one.network.adapter = _Poisoned(adapter, only=2)  # type: ignore[assignment]
    assert one.run().skipped_steps == 1
    assert all(torch.isfinite(tensor).all() for tensor in weights(one).values())


def test_memory_that_runs_out_says_what_would_fit(
    adapter: StableDiffusion, caches: dict[str, TensorCache], tmp_path: Path
) -> None:
    one = trainer(adapter, caches, tmp_path)

    def greedy(*arguments: object, **keys: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    one.objective = greedy  # type: ignore[assignment]
    with pytest.raises(PogdiffError, match=r"Out of memory with train\.train_batch_size 4") as failure:
        one.run()
    assert failure.value.exit_code == Exit.MEMORY
    assert "gradient_accumulation_steps" in str(failure.value.hint)


def test_a_dropped_caption_has_no_neighbour(caches: dict[str, TensorCache]) -> None:
    train = TrainConfig(train_batch_size=8, caption_dropout=0.5, roulette=None)
    made = batches(caches, train)
    dropped = made.texts.get([text_key("")])["condition.hidden"][0]
    seen = 0
    for step in range(20):
        (batch,) = made.draw(step, np.arange(8))
        empty = {i for i in range(8) if torch.equal(batch.condition["hidden"][i], dropped)}
        assert not empty & set(batch.neighbour_rows.tolist())
        assert empty | set(batch.neighbour_rows.tolist()) == set(range(8))
        seen += len(empty)
    assert 50 < seen < 110  # binomial(160, 0.5): 4.7 deviations either way


def test_psi_of_a_row_is_image_similarity_times_inverse_density(caches: dict[str, TensorCache]) -> None:
    train = TrainConfig(train_batch_size=8, caption_dropout=0.0, a1=1.0, a2=2.0, roulette=None)
    made = batches(caches, train)
    (batch,) = made.draw(0, np.arange(8))
    values = set(np.round(batch.neighbour_psi.numpy(), 6).tolist())
    assert values <= {round(0.5 * 2.0, 6), round(0.5**3 * 2.0, 6)}  # same identity, another one
    assert len(values) == 2


def test_roulette_spares_forwards_and_keeps_the_expected_weight(caches: dict[str, TensorCache]) -> None:
    train = TrainConfig(train_batch_size=8, caption_dropout=0.0, roulette=2.0)
    spared, plain = batches(caches, train), batches(caches, train.model_copy(update={"roulette": None}))
    totals = {"spared": 0.0, "plain": 0.0, "rows": 0}
    for step in range(400):
        (one,), (other,) = spared.draw(step, np.arange(8)), plain.draw(step, np.arange(8))
        totals["spared"] += float(one.neighbour_psi.sum())
        totals["plain"] += float(other.neighbour_psi.sum())
        totals["rows"] += len(one.neighbour_rows)
    assert totals["rows"] < 0.6 * 8 * 400
    assert totals["spared"] == pytest.approx(totals["plain"], rel=0.08)


def test_draws_do_not_depend_on_how_the_batch_is_cut(caches: dict[str, TensorCache]) -> None:
    made = batches(caches, TrainConfig(train_batch_size=8))
    (whole,) = made.draw(5, np.arange(8))
    parts = [*made.draw(5, np.arange(4)), *made.draw(5, np.arange(4, 8))]
    assert torch.equal(whole.noise, torch.cat([part.noise for part in parts]))
    assert torch.equal(whole.x0, torch.cat([part.x0 for part in parts]))
    assert torch.equal(whole.t, torch.cat([part.t for part in parts]))


class _Poisoned:
    """An adapter whose prediction is not a number, always or at one call."""

    def __init__(self, adapter: StableDiffusion, only: int | None = None) -> None:
        self._adapter, self._only, self._calls = adapter, only, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def predict(self, *arguments: Any) -> torch.Tensor:
        self._calls += 1
        bad = self._only is None or self._calls == self._only
        return self._adapter.predict(*arguments) * (float("nan") if bad else 1.0)
