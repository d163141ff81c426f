"""Draws as functions, and which record they choose."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pogdiff_cli.data.draws import Stream, normal, normals, uniform
from pogdiff_cli.data.sampling import RecordSampler, exposure, loss_weights
from pogdiff_cli.errors import PogdiffError

COUNTS = (8, 8, 8, 2, 2, 1)
IDENTITY = np.repeat(np.arange(len(COUNTS)), COUNTS)
SAMPLINGS = ("natural", "sqrt", "balanced", "repeat_factor")


def epochs_of(sampler: RecordSampler, epochs: int) -> NDArray[np.int64]:
    return sampler.rows(0, np.arange(epochs * sampler.epoch_size), 1)


def test_a_draw_depends_on_its_own_slot_and_not_on_who_else_is_drawn() -> None:
    together = uniform(3, Stream.NEIGHBOUR, 7, np.arange(8), 2)
    apart = np.concatenate([uniform(3, Stream.NEIGHBOUR, 7, np.array([slot]), 2) for slot in range(8)])
    assert np.array_equal(together, apart)
    backwards = uniform(3, Stream.NEIGHBOUR, 7, np.arange(8)[::-1], 2)
    assert np.array_equal(backwards[::-1], together)


def test_asking_for_more_numbers_only_appends() -> None:
    assert np.array_equal(uniform(0, Stream.FLIP, 1, [4], 5)[:, :2], uniform(0, Stream.FLIP, 1, [4], 2))


def test_noise_of_a_slot_is_the_same_alone_and_in_a_batch() -> None:
    batch = normals(1, Stream.NOISE, 9, np.arange(4), (4, 8, 8))
    assert batch.dtype == np.float32
    assert np.array_equal(batch[2], normal(1, Stream.NOISE, 9, 2, (4, 8, 8)))


def test_seed_stream_step_and_slot_each_change_every_draw() -> None:
    base = (0, Stream.NOISE, 0, 0)
    others = [
        (1, Stream.NOISE, 0, 0),
        (0, Stream.LATENT, 0, 0),
        (0, Stream.NOISE, 1, 0),
        (0, Stream.NOISE, 0, 1),
    ]
    first = normal(*base, (64,))
    for other in others:
        assert not np.isin(normal(*other, (64,)), first).any()


def test_blocks_of_one_slot_never_run_into_the_next_slot() -> None:
    long = uniform(0, Stream.NOISE, 0, [0], 4096)[0]
    following = uniform(0, Stream.NOISE, 0, [1, 2, 3], 64)
    assert not np.isin(following, long).any()


def test_draws_follow_their_distributions() -> None:
    u = uniform(11, Stream.TIMESTEP, 0, np.arange(4000))[:, 0]
    z = normals(11, Stream.NOISE, 0, np.arange(200), (32,)).ravel()
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert stats.kstest(z, "norm").pvalue > 1e-3


def test_neighbouring_slots_and_steps_are_not_correlated() -> None:
    u = np.stack([uniform(5, Stream.FLIP, step, np.arange(64))[:, 0] for step in range(64)]) - 0.5
    bound = 4 / 64  # four standard errors of a correlation over 64 x 64 draws
    assert abs((u[1:] * u[:-1]).mean() * 12) < bound
    assert abs((u[:, 1:] * u[:, :-1]).mean() * 12) < bound


def test_a_batch_of_noise_takes_milliseconds() -> None:
    normals(0, Stream.NOISE, 0, np.arange(32), (4, 64, 64))
    times = []
    for step in range(5):
        start = time.process_time()
        normals(0, Stream.NOISE, step, np.arange(32), (4, 64, 64))
        times.append(time.process_time() - start)
    assert min(times) < 0.1  # some 6 ms on an idle core


def test_negative_or_overlong_numbers_are_refused() -> None:
    for seed, step, slot in ((-1, 0, 0), (0, -1, 0), (0, 0, 2**64)):
        with pytest.raises(ValueError, match="lie in"):
            normal(seed, Stream.NOISE, step, slot, (1,))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("global_batch", [1, 4, 6, 64])
def test_any_split_of_the_batch_draws_the_same_records(sampling: str, global_batch: int) -> None:
    whole = RecordSampler(IDENTITY, sampling, 5)
    slots = np.arange(global_batch)
    for step in (0, 3, 17):
        parts = [
            RecordSampler(IDENTITY, sampling, 5).rows(step, part, global_batch) for part in np.array_split(slots, 3)
        ]
        assert np.array_equal(whole.rows(step, slots, global_batch), np.concatenate(parts))


def test_natural_shows_every_record_once_an_epoch_and_drops_no_remainder() -> None:
    sampler = RecordSampler(IDENTITY, "natural", 0)
    n, batch = len(IDENTITY), 4  # 29 records: no batch size divides them
    rows = np.concatenate([sampler.rows(step, np.arange(batch), batch) for step in range(n)])  # four epochs
    for epoch in rows.reshape(batch, n):
        assert sorted(epoch) == list(range(n))
    assert not np.array_equal(rows[:n], rows[n : 2 * n])


def test_balanced_shows_every_identity_once_a_round_and_every_photo_in_turn() -> None:
    sampler = RecordSampler(IDENTITY, "balanced", 0)
    rows = epochs_of(sampler, 16)
    for round_ in IDENTITY[rows].reshape(16, len(COUNTS)):
        assert sorted(round_) == list(range(len(COUNTS)))
    photos = Counter(rows.tolist())
    assert {photos[row] for row in np.flatnonzero(IDENTITY == 0)} == {2}
    assert {photos[row] for row in np.flatnonzero(IDENTITY == 3)} == {8}


def test_square_root_sampling_draws_identities_by_the_root_of_their_counts() -> None:
    sampler = RecordSampler(IDENTITY, "sqrt", 1)
    epochs = 200
    seen = exposure(epochs_of(sampler, epochs), IDENTITY, len(COUNTS))
    expected = np.sqrt(COUNTS) / np.sqrt(COUNTS).sum() * len(IDENTITY) * epochs
    # systematic sampling: each identity within one draw of its share in every epoch
    assert np.abs(seen - expected).max() < epochs
    assert np.allclose(seen / expected, 1.0, atol=0.05)


def test_repeat_factor_follows_lvis() -> None:
    threshold = 0.2
    frequency = np.array(COUNTS) / len(IDENTITY)
    factor = np.maximum(1.0, np.sqrt(threshold / frequency))
    sampler = RecordSampler(IDENTITY, "repeat_factor", 1, repeat_threshold=threshold)
    epochs = 400
    seen = exposure(epochs_of(sampler, epochs), IDENTITY, len(COUNTS))
    expected = np.array(COUNTS) * factor
    assert sampler.epoch_size == int(np.ceil(expected.sum()))
    assert np.allclose(seen / epochs, expected * sampler.epoch_size / expected.sum(), rtol=0.05)


def test_repeat_factor_shows_every_record_in_every_epoch() -> None:
    sampler = RecordSampler(IDENTITY, "repeat_factor", 3)
    for epoch in epochs_of(sampler, 20).reshape(20, -1):
        assert set(epoch) == set(range(len(IDENTITY)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_photos_of_one_identity_are_shown_equally_often(sampling: str) -> None:
    sampler = RecordSampler(IDENTITY, sampling, 2)
    seen = np.bincount(epochs_of(sampler, 400), minlength=len(IDENTITY))
    head = seen[IDENTITY == 0]
    assert head.max() <= head.mean() * 1.2 + 1


def test_equal_counts_make_every_sampling_natural() -> None:
    identity = np.repeat(np.arange(4), 3)
    for sampling in ("natural", "sqrt", "repeat_factor"):
        rows = epochs_of(RecordSampler(identity, sampling, 0), 1)
        assert sorted(rows) == list(range(12))


def test_the_seed_changes_the_order() -> None:
    orders = {tuple(epochs_of(RecordSampler(IDENTITY, "natural", seed), 1)) for seed in range(5)}
    assert len(orders) == 5


def test_no_record_is_an_error() -> None:
    with pytest.raises(PogdiffError, match="no training record"):
        RecordSampler(np.array([], dtype=np.int32), "natural", 0)


def test_inverse_square_root_weights_have_mean_one_and_the_right_ratio() -> None:
    weights = loss_weights(IDENTITY, "inverse_sqrt")
    assert weights.mean() == pytest.approx(1.0, abs=1e-12)
    assert weights[IDENTITY == 3][0] / weights[IDENTITY == 0][0] == pytest.approx(2.0)  # sqrt(8 / 2)
    assert np.array_equal(loss_weights(IDENTITY, "none"), np.ones(len(IDENTITY)))


def test_exposure_counts_draws_by_identity() -> None:
    assert exposure(np.array([0, 0, 9, 28]), IDENTITY, 7).tolist() == [2, 1, 0, 0, 0, 1, 0]
