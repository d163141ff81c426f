"""What a step is handed: whoever draws it, however the batch is split, whatever shapes its images have."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import avg_pool2d

from pogdiff_cli.data.draws import Stream, normals, uniform
from pogdiff_cli.data.sampling import RecordSampler
from pogdiff_cli.engine.batches import Batches, DrawSettings, HostBatch, TrainingRows
from pogdiff_cli.engine.cache import TensorCache
from pogdiff_cli.engine.encode import Images, encode_latents, encode_texts, latent_key, text_key
from pogdiff_cli.engine.objectives import make_objective
from pogdiff_cli.engine.terms import Batch
from pogdiff_cli.models.adapter import Moments, TextEncoding
from pogdiff_cli.project.digests import digest_bytes

B = 8
SQUARE, WIDE = (4, 4, 4), (4, 2, 8)
SETTINGS: dict[str, Any] = {
    "method": "vanilla",
    "seed": 3,
    "timesteps": 1000,
    "caption_dropout": 0.25,
    "noise_offset": 0.0,
    "a1": 1.0,
    "a2": 1.0,
    "psi_terms": ("img_sim", "inv_density"),
    "roulette": None,
    "cbdm_drop": 0.1,
    "cbdm_uniform": "record",
}


def caches(folder: Path, shapes: list[tuple[int, ...]]) -> dict[str, TensorCache]:
    """One entry a record; a record's mean is its number everywhere, and its text's hidden state too."""
    latents, texts = TensorCache(folder / "latents"), TensorCache(folder / "texts")
    latents.add(
        {
            f"{i}{mark}": {"mean": torch.full(shape, sign * float(i + 1)), "std": torch.full(shape, 0.01)}
            for i, shape in enumerate(shapes)
            for mark, sign in (("", 1), ("-flip", -1))
        }
    )
    hidden = {str(i): torch.full((5, 6), float(i + 1)) for i in range(len(shapes))} | {"": torch.zeros(5, 6)}
    texts.add({name: {"condition.hidden": tensor, "pooled": tensor[0]} for name, tensor in hidden.items()})
    return {"latents": latents, "texts": texts}


def batches(
    made: dict[str, TensorCache], *, rows: int = B, micro: int = 1, rank: int = 0, world: int = 1, **changes: Any
) -> Batches:
    n = changes.pop("n", 9)
    mirrored = changes.pop("mirrored", False)
    split = {"global_batch": rows * micro * world, "rows_per_micro_batch": rows}
    identity = np.arange(n, dtype=np.int32) // 2
    names = [str(i) for i in range(n)]
    return Batches(
        rows=TrainingRows(
            latents=made["latents"].locate(names),
            flipped=made["latents"].locate(f"{name}-flip" for name in names) if mirrored else None,
            texts=made["texts"].locate(names),
            empty_text=int(made["texts"].locate([""])[0]),
            identity=identity,
            loss_weight=np.ones(n),
            log_density=np.random.default_rng(1).normal(size=n),
        ),
        settings=DrawSettings(**SETTINGS | split | changes),
        sampler=RecordSampler(identity, "natural", 3),
        latents=made["latents"],
        texts=made["texts"],
        micro_batches=micro,
        rank=rank,
        world=world,
    )


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TensorCache]:
    """Nine records of one shape."""
    return caches(tmp_path_factory.mktemp("alike"), [SQUARE] * 9)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TensorCache]:
    """Nine records, every third of them wide."""
    return caches(tmp_path_factory.mktemp("mixed"), [WIDE if i % 3 == 2 else SQUARE for i in range(9)])


Step = dict[tuple[int, int], dict[str, torch.Tensor]]


def by_draw(groups: list[HostBatch]) -> Step:
    """What each draw was handed; a record may come twice in a batch, but at another timestep."""
    found = {}
    for group in groups:
        for place, row in enumerate(group.rows.tolist()):
            found[row, int(group.t[place])] = {
                "x0": group.x0[place],
                "noise": group.noise[place],
                "hidden": group.condition["hidden"][place],
            }
    return found


def same(first: Step, second: Step) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[draw][key], second[draw][key]) for draw in first for key in first[draw]
    )


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_ranks_and_micro_batches_hold_each_slot_once_whatever_the_split(rows: int, micro: int, world: int) -> None:
    empty: Any = SimpleNamespace(names=())
    columns: Any = SimpleNamespace(identity=np.zeros(1, dtype=np.int32))
    settings = DrawSettings(**SETTINGS, global_batch=rows * micro * world, rows_per_micro_batch=rows)
    held = []
    for rank in range(world):
        one = Batches(
            rows=columns, settings=settings, sampler=empty, latents=empty, texts=empty, micro_batches=micro,
            rank=rank, world=world,
        )  # fmt: skip
        held += [slot for number in range(micro) for slot in one.slots(number).tolist()]
    assert sorted(held) == list(range(rows * micro * world))


@pytest.mark.parametrize("split", [{"global_batch": 7}, {"rank": 1}, {"rank": -1}])
def test_a_split_that_does_not_add_up_is_refused(alike: dict[str, TensorCache], split: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no split of a global batch"):
        batches(alike, **split)


@pytest.mark.parametrize("kind", ["alike", "mixed"])
@pytest.mark.parametrize(("rows", "micro", "world"), [(4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 8, 1), (1, 2, 4)])
def test_every_split_hands_out_the_same_step(
    kind: str, rows: int, micro: int, world: int, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(kind)
    for step in (0, 3):
        whole = by_draw(batches(made)[step])
        parts: Step = {}
        for rank in range(world):
            one = batches(made, rows=rows, micro=micro, rank=rank, world=world)
            for number in range(micro):
                parts |= by_draw(one[step * micro + number])
        assert len(whole) == B
        assert same(whole, parts)


def test_rows_of_one_shape_come_in_one_batch(alike: dict[str, TensorCache]) -> None:
    assert [len(batches(alike)[step]) for step in range(5)] == [1] * 5


def test_rows_of_two_shapes_come_in_two_batches_and_none_is_lost(mixed: dict[str, TensorCache]) -> None:
    made = batches(mixed)
    for step in range(9):
        groups = made[step]
        rows = np.concatenate([group.rows for group in groups])
        expected = made.sampler.rows(step, np.arange(B), B)
        assert sorted(rows) == sorted(expected)
        assert len(groups) == 2
        for group in groups:
            (shape,) = {WIDE if row % 3 == 2 else SQUARE for row in group.rows}
            assert group.x0.shape == group.noise.shape == (len(group.rows), *shape)


def test_noise_is_drawn_in_a_rows_own_shape_from_its_own_slot(mixed: dict[str, TensorCache]) -> None:
    made = batches(mixed)
    rows = made.sampler.rows(4, np.arange(B), B)
    t = np.floor(uniform(3, Stream.TIMESTEP, 4, np.arange(B))[:, 0] * 1000).astype(int)
    slots = {draw: slot for slot, draw in enumerate(zip(rows.tolist(), t.tolist(), strict=True))}
    for group in made[4]:
        own = [slots[draw] for draw in zip(group.rows.tolist(), group.t.tolist(), strict=True)]
        expected = normals(3, Stream.NOISE, 4, own, tuple(group.x0.shape[1:]))
        assert np.array_equal(group.noise.numpy(), expected)


def test_latents_are_the_posterior_at_this_steps_noise(alike: dict[str, TensorCache]) -> None:
    (group,) = batches(alike)[2]
    noise = torch.from_numpy(normals(3, Stream.LATENT, 2, np.arange(B), SQUARE))
    mean = torch.from_numpy(group.rows + 1).float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(group.x0, mean + 0.01 * noise)


def test_captions_are_the_records_own_or_empty(alike: dict[str, TensorCache]) -> None:
    made = batches(alike)
    for step in range(10):
        (group,) = made[step]
        kept = uniform(3, Stream.DROPOUT, step, np.arange(B))[:, 0] >= 0.25
        assert group.condition["hidden"][:, 0, 0].tolist() == np.where(kept, group.rows + 1.0, 0.0).tolist()
        assert set(group.condition) == {"hidden"}


def test_mirrored_latents_are_taken_at_the_flips_that_were_drawn_and_only_where_asked(
    alike: dict[str, TensorCache],
) -> None:
    plain, mirrored = batches(alike), batches(alike, n=9, mirrored=True)
    for step in range(5):
        (upright,), (turned,) = plain[step], mirrored[step]
        flips = uniform(3, Stream.FLIP, step, np.arange(B))[:, 0] < 0.5
        assert (upright.x0.mean((1, 2, 3)) > 0).all()
        assert ((turned.x0.mean((1, 2, 3)) < 0).numpy() == flips).all()


def test_cbdm_draws_records_uniformly_over_identities_and_within_them(alike: dict[str, TensorCache]) -> None:
    made = batches(alike, method="cbdm", cbdm_uniform="identity")  # four identities of two, one of one
    drawn = Counter(int(row) for step in range(700) for row in made._uniform_records(step, np.arange(B)))
    expected = {row: 5600 / 5 / (1 if row == 8 else 2) for row in range(9)}
    assert all(abs(drawn[row] - count) < 5 * np.sqrt(count) for row, count in expected.items())


def noised(group: HostBatch) -> Batch:
    """A linear schedule by hand: enough for t2h, which needs x_t and abar only."""
    abar = (1.0 - (group.t.double() + 1) / 1001).float()
    side = abar.reshape(-1, 1, 1, 1)
    return Batch(
        x0=group.x0,
        x_t=side.sqrt() * group.x0 + (1 - side).sqrt() * group.noise,
        noise=group.noise,
        target=group.noise,
        t=group.t,
        condition=group.condition,
        weight=group.loss_weight,
        alphas_cumprod_t=abar,
        log_density=group.log_density,
        transfer_draws=group.transfer_draws,
        transfer_x0=group.transfer_x0,
        transfer_log_density=group.transfer_log_density,
        transfer_own=group.transfer_own,
    )


def t2h_step(made: dict[str, TensorCache], step: int, *, rows: int, micro: int, world: int) -> dict[str, float]:
    objective = make_objective("t2h", transfer_temperature=1e4)
    parts: Counter[str] = Counter()
    for rank in range(world):
        one = batches(made, rows=rows, micro=micro, rank=rank, world=world, method="t2h")
        for number in range(micro):
            for group in one[step * micro + number]:
                loss = objective(lambda x, t, c: 0.5 * x, noised(group), denominator=B)
                parts.update({name: value.item() for name, value in loss.parts.items()})
    return dict(parts)


@pytest.mark.parametrize("kind", ["alike", "mixed"])
def test_t2h_has_one_loss_whatever_the_split(kind: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(kind)
    moved = 0.0
    for step in range(4):
        whole = t2h_step(made, step, rows=B, micro=1, world=1)
        for rows, micro, world in ((4, 2, 1), (2, 2, 2), (1, 8, 1), (4, 1, 2)):
            assert t2h_step(made, step, rows=rows, micro=micro, world=world) == pytest.approx(whole, rel=1e-5)
        moved += whole["transfer_rate"]
    assert moved > 0.5  # else the candidates were never needed


def test_t2h_chooses_among_the_rows_of_the_global_batch_with_its_shape(mixed: dict[str, TensorCache]) -> None:
    whole = batches(mixed, method="t2h")
    part = batches(mixed, rows=2, micro=4, method="t2h")
    rows = whole.sampler.rows(1, np.arange(B), B)
    for group in part[4 + 1]:
        wide = group.rows[0] % 3 == 2
        alike = [int(row) for row in rows if (row % 3 == 2) == wide]
        assert group.transfer_x0 is not None
        assert group.transfer_own is not None
        assert group.transfer_x0.mean((1, 2, 3)).round().int().tolist() == [row + 1 for row in alike]
        assert torch.equal(group.transfer_x0[group.transfer_own], group.x0)


class Pooling:
    """An adapter whose latents are means of 8x8 pixels, and whose texts are their lengths.

    It remembers what it was given; a batch is filled up with its last row, which counts once.
    """

    side_multiple = 8

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.texts: list[str] = []

    def encode_images(self, pixels: torch.Tensor) -> Moments:
        self.shapes.append((len(torch.unique(pixels.flatten(1), dim=0)), *pixels.shape[1:]))
        mean = avg_pool2d(pixels, 8)
        return Moments(mean=mean, std=torch.zeros_like(mean))

    def encode_text(self, texts: list[str]) -> TextEncoding:
        self.texts += dict.fromkeys(texts)
        lengths = torch.tensor([[float(len(text))] for text in texts])
        return TextEncoding(condition={"hidden": lengths[:, :, None]}, pooled=lengths)


def photographs(folder: Path) -> Images:
    """Nine photos of five people, two a person but one; four aspects."""
    sizes = [(64, 64), (80, 48), (48, 80), (72, 56), (64, 64), (80, 48), (120, 60), (64, 64), (30, 60)]
    draw = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    names = [f"{number}.png" for number in range(9)]
    digests = [digest_bytes(folder / name).removeprefix("sha256:") for name in names]
    return Images(folder=folder, file_names=names, sha256=digests, sizes=np.array(sizes))


def encoded(cache: TensorCache, adapter: Any, images: Images, **keys: Any) -> None:
    encode_latents(cache, adapter, images, **{"resolution": 64, "resize": "bucket", "batch_size": 4} | keys)


def test_buckets_change_no_exposure_and_show_every_record(tmp_path: Path) -> None:
    images = photographs(tmp_path)
    seen = {}
    for resize in ("crop", "bucket"):
        made = {"latents": TensorCache(tmp_path / resize), "texts": TensorCache(tmp_path / "texts")}
        encoded(made["latents"], Pooling(), images, resize=resize)
        encode_texts(made["texts"], Pooling(), ["caption", ""])  # type: ignore[arg-type]
        identity = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4], dtype=np.int32)
        texts = made["texts"].locate([text_key("caption"), text_key("")])
        one = Batches(
            rows=TrainingRows(
                latents=made["latents"].locate(images.keys(flipped=False)),
                texts=np.repeat(texts[:1], 9),
                empty_text=int(texts[1]),
                identity=identity,
                loss_weight=np.ones(9),
            ),
            settings=DrawSettings(**SETTINGS, global_batch=4, rows_per_micro_batch=4),
            sampler=RecordSampler(identity, "natural", 0),
            **made,
            micro_batches=1,
        )
        steps = [one[step] for step in range(9)]  # 36 draws: four epochs of nine, which four does not divide
        seen[resize] = Counter(int(row) for groups in steps for group in groups for row in group.rows)
        shapes = {tuple(group.x0.shape[1:]) for groups in steps for group in groups}
        assert len(shapes) == (1 if resize == "crop" else 6)
    assert seen["bucket"] == seen["crop"] == dict.fromkeys(range(9), 4)


def test_images_of_one_bucket_are_encoded_together(tmp_path: Path) -> None:
    adapter, cache = Pooling(), TensorCache(tmp_path / "cache")
    images = photographs(tmp_path)
    encoded(cache, adapter, images, batch_size=3)
    assert sum(shape[0] for shape in adapter.shapes) == 9
    assert (3, 3, 64, 64) in adapter.shapes
    found = cache.get([latent_key(images.sha256[1], flipped=False), latent_key(images.sha256[5], flipped=False)])
    assert found["mean"].shape == (2, 3, 6, 10)


@pytest.mark.parametrize("look", ["at the same moment", "one after the other"])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_encode_every_image_and_text_once_between_them(tmp_path: Path, world: int, look: str) -> None:
    images, texts = photographs(tmp_path), [f"{'a' * n}" for n in (1, 2, 3, 2, 4, 5, 0)]
    alone, adapters = TensorCache(tmp_path / "alone"), [Pooling() for _ in range(world)]
    encoded(alone, Pooling(), images, flips=(False, True))
    opened = [(TensorCache(tmp_path / "latents"), TensorCache(tmp_path / "texts")) for _ in range(world)]
    for rank, (latents, captions) in enumerate(opened):
        if look == "one after the other":
            latents.refresh()
            captions.refresh()
        encoded(latents, adapters[rank], images, flips=(False, True), rank=rank, world=world)
        encode_texts(captions, adapters[rank], texts, rank=rank, world=world)  # type: ignore[arg-type]
    assert sum(shape[0] for adapter in adapters for shape in adapter.shapes) == 18
    assert Counter(text for adapter in adapters for text in adapter.texts) == Counter(set(texts))
    for latents, captions in opened:
        latents.refresh()
        captions.refresh()
        assert captions.missing([text_key(text) for text in texts]) == []
        for flip in (False, True):
            for key in images.keys(flipped=flip):
                assert torch.equal(latents.get([key])["mean"], alone.get([key])["mean"])


def test_mirrored_latents_are_made_only_where_asked_and_are_mirrored(tmp_path: Path) -> None:
    images, cache = photographs(tmp_path), TensorCache(tmp_path / "cache")
    encoded(cache, Pooling(), images)
    assert len(cache.missing(list(images.keys(flipped=True)))) == 9
    encoded(cache, Pooling(), images, flips=(False, True))
    upright, turned = (cache.get([latent_key(images.sha256[1], flipped=flip)])["mean"] for flip in (False, True))
    torch.testing.assert_close(turned, upright.flip(-1))


def test_what_is_encoded_already_is_not_encoded_again(tmp_path: Path) -> None:
    images, adapter = photographs(tmp_path), Pooling()
    for _ in range(2):
        encoded(TensorCache(tmp_path / "cache"), adapter, images)
    assert sum(shape[0] for shape in adapter.shapes) == 9


def test_a_batch_comes_out_of_a_data_worker_as_it_went_in(mixed: dict[str, TensorCache]) -> None:
    made = batches(mixed, method="t2h")
    loader = torch.utils.data.DataLoader(made, batch_size=None, sampler=range(3), num_workers=1)
    for step, received in enumerate(loader):
        for here, there in zip(made[step], received, strict=True):
            for each in fields(HostBatch):
                expected, found = getattr(here, each.name), getattr(there, each.name)
                if isinstance(expected, torch.Tensor):
                    assert torch.equal(expected, found)
                    assert expected.dtype == found.dtype
                elif each.name == "condition":
                    assert torch.equal(expected["hidden"], found["hidden"])
                else:
                    assert np.array_equal(expected, found)


def test_a_batch_of_very_many_records_takes_no_longer_than_one_of_few(alike: dict[str, TensorCache]) -> None:
    few = batches(alike)
    n = 300_000
    columns = few.rows
    identity = np.arange(n, dtype=np.int32) // 2
    many = Batches(
        rows=replace(
            columns,
            latents=np.resize(columns.latents, n),
            texts=np.resize(columns.texts, n),
            identity=identity,
            loss_weight=np.ones(n),
        ),
        settings=few.settings,
        sampler=RecordSampler(identity, "natural", 3),
        latents=alike["latents"],
        texts=alike["texts"],
        micro_batches=1,
    )

    def fastest(made: Batches) -> float:
        made[0]  # the first draws the epoch's order
        times = []
        for step in range(1, 40):
            start = time.process_time()
            made[step]
            times.append(time.process_time() - start)
        return min(times)

    assert fastest(many) < 2 * fastest(few)
