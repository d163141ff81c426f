"""A cache gives back what was put in, or says that it cannot; whoever adds to it, and whatever happens to its files."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pogdiff_cli.engine import cache as cache_module
from pogdiff_cli.engine.cache import DamagedCache, TensorCache
from pogdiff_cli.errors import Exit, PogdiffError


def entry(value: float, *shape: int) -> dict[str, torch.Tensor]:
    return {"mean": torch.full(shape or (3,), float(value)), "std": torch.full((2,), -float(value))}


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cache counts as too large to be read through when it is opened."""
    monkeypatch.setattr(cache_module, "SMALL", 0)


@given(st.lists(st.lists(st.text(max_size=6), min_size=1, max_size=5, unique=True), max_size=6), st.data())
@settings(max_examples=40, deadline=None)
def test_entries_come_back_as_they_went_in_whatever_the_keys(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[str]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    first, expected = TensorCache(folder), {}
    for number, keys in enumerate(shards):
        fresh = first.missing(keys)
        assert fresh == [key for key in keys if key not in expected]
        values = {key: float(100 * number + place) for place, key in enumerate(fresh)}
        first.add({key: entry(value) for key, value in values.items()})
        expected |= values
    if not expected:
        return
    wanted = data.draw(st.lists(st.sampled_from(sorted(expected)), min_size=1, max_size=8))
    for cache in (first, TensorCache(folder), pickle.loads(pickle.dumps(first))):
        found = cache.get(wanted)
        assert found["mean"].tolist() == [[expected[key]] * 3 for key in wanted]
        assert found["std"].tolist() == [[-expected[key]] * 2 for key in wanted]


def test_missing_keys_are_named_once_and_in_order(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.add({"b": entry(1)})
    assert cache.missing(["z", "b", "a", "z", "b", "c"]) == ["z", "a", "c"]
    assert cache.missing_places(iter(["z", "b", "a", "z"])).tolist() == [0, 2]


def test_equal_keys_have_equal_locations_and_others_do_not(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.add({"a": entry(1), "b": entry(1)})
    cache.add({"c": entry(1)})
    a, b, again, c = cache.locate(["a", "b", "a", "c"]).tolist()
    assert a == again
    assert len({a, b, c}) == 3


def test_a_key_without_an_entry_is_an_error_and_says_so(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.add({"a": entry(1)})
    with pytest.raises(PogdiffError, match="1 of 2 entries are not in the cache") as refusal:
        cache.locate(["a", "b"])
    assert refusal.value.exit_code == Exit.MISSING


def test_entries_of_different_shapes_are_kept_apart_and_never_stacked(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.add({"square": entry(1, 4, 4), "wide": entry(2, 2, 8), "square too": entry(3, 4, 4)})
    assert len(files(tmp_path)) == 2
    locations = cache.locate(["square", "wide", "square too"])
    layouts = cache.layouts(locations)
    assert layouts[0] == layouts[2] != layouts[1]
    assert cache.get(["square too", "square"])["mean"][:, 0, 0].tolist() == [3.0, 1.0]
    with pytest.raises(ValueError, match="different shapes"):
        cache.read(locations)


def test_one_tensor_can_be_read_without_the_others(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.add({"a": entry(1)})
    assert cache.names == ("mean", "std")
    assert set(cache.get(["a", "a"], ["std"])) == {"std"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_types_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([1.5, -2.25, 1e-3]).to(dtype)
    cache = TensorCache(tmp_path)
    cache.add({"a": {"x": values, "scalar": values[0]}})
    found = TensorCache(tmp_path).get(["a"])
    assert found["x"].dtype == dtype
    assert torch.equal(found["x"][0], values)
    assert torch.equal(found["scalar"], values[:1])


def test_a_file_is_named_after_its_bytes_and_the_same_entries_make_the_same_file(tmp_path: Path) -> None:
    for _ in range(2):
        TensorCache(tmp_path).add({"a": entry(1)})
    assert len(files(tmp_path)) == 1


def test_a_small_cache_sets_a_file_with_a_flipped_bit_aside_when_it_is_opened(tmp_path: Path) -> None:
    TensorCache(tmp_path).add({"a": entry(1)})
    (victim,) = files(tmp_path)
    TensorCache(tmp_path).add({"b": entry(2)})
    flip_bit(victim, -1)
    again = TensorCache(tmp_path)
    assert again.damaged == [victim]
    assert again.missing(["a", "b"]) == ["a"]
    assert again.get(["b", "b"])["mean"].tolist() == [[2.0] * 3] * 2
    again.add({"a": entry(1)})
    whole = TensorCache(tmp_path)
    assert not whole.damaged
    assert whole.get(["a"])["mean"].tolist() == [[1.0] * 3]


@pytest.mark.usefixtures("large")
def test_any_flipped_bit_of_a_large_cache_is_found_at_the_latest_when_it_is_read(tmp_path: Path) -> None:
    original = {"a": entry(1), "b": entry(2)}
    TensorCache(tmp_path / "sound").add(original)
    (sound,) = files(tmp_path / "sound")
    content = sound.read_bytes()
    when = {"opening": 0, "reading": 0, "harmless": 0}
    for place in range(len(content)):
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / sound.name).write_bytes(content)
        flip_bit(folder / sound.name, place)
        cache = TensorCache(folder)
        if cache.damaged:
            assert cache.missing(["a", "b"]) == ["a", "b"]
            when["opening"] += 1
            continue
        try:
            found = cache.get(["a", "b"])
        except DamagedCache:
            assert TensorCache(folder).missing(["a", "b"]) == ["a", "b"]
            when["reading"] += 1
        else:  # a part of the header that nothing depends on: what is read must be what was written
            assert place < content.index(b"}}") + 2
            assert all(torch.equal(found[name][0], tensor) for name, tensor in original["a"].items())
            assert all(torch.equal(found[name][1], tensor) for name, tensor in original["b"].items())
            when["harmless"] += 1
    assert when["reading"] >= 2 * 5 * 4  # every byte of the tensors
    assert when["opening"] >= 2 * (32 + 2 * 8)  # every byte of the keys and checksums


@pytest.mark.usefixtures("large")
def test_a_damaged_entry_does_not_keep_others_of_its_file_from_being_read_first(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.add({"a": {"x": torch.arange(8.0)}, "b": {"x": torch.arange(8.0)}})
    (victim,) = files(tmp_path)
    content = bytearray(victim.read_bytes())
    column = content.find(torch.arange(8.0).numpy().tobytes())
    flip_bit(victim, column + 32 + 5)  # b's row
    again = TensorCache(tmp_path)
    assert torch.equal(again.get(["a"])["x"][0], torch.arange(8.0))
    with pytest.raises(DamagedCache, match="Type the same command again") as failure:
        again.get(["b"])
    assert failure.value.exit_code == Exit.DATA
    assert victim.with_suffix(".damaged").exists()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_cut_file_is_not_taken_for_a_whole_one(tmp_path: Path, length: int) -> None:
    TensorCache(tmp_path).add({"a": entry(1)})
    (victim,) = files(tmp_path)
    victim.write_bytes(victim.read_bytes()[:length])
    cache = TensorCache(tmp_path)
    assert cache.damaged == [victim]
    assert cache.missing(["a"]) == ["a"]


def test_a_crash_while_writing_leaves_no_entry_and_a_later_opening_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TensorCache(tmp_path)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pogdiff_cli.engine.shards.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.add({"a": entry(1)})
    assert TensorCache(tmp_path).missing(["a"]) == ["a"]
    left, young = tmp_path / ".partial-old.safetensors", tmp_path / ".partial-young.safetensors"
    for path in (left, young):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    assert TensorCache(tmp_path).damaged == []
    assert not left.exists()
    assert young.exists()


def test_what_another_process_adds_is_seen_after_a_refresh_and_locations_stay_valid(tmp_path: Path) -> None:
    one, other = TensorCache(tmp_path), TensorCache(tmp_path)
    one.add({"a": entry(1)})
    before = one.locate(["a"])
    other.add({"b": entry(2)})
    assert one.missing(["a", "b"]) == ["b"]
    one.refresh()
    assert one.missing(["a", "b"]) == []
    assert one.read(before)["mean"].tolist() == [[1.0] * 3]
    assert one.get(["b"])["mean"].tolist() == [[2.0] * 3]


def _add_some(folder: Path, rank: int) -> None:
    cache = TensorCache(folder)
    for number in range(10):
        cache.add({f"{rank}-{number}-{i}": entry(100 * rank + number) for i in range(3)})


def test_processes_that_add_to_one_folder_at_a_time_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_some, args=(tmp_path, rank)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    cache = TensorCache(tmp_path)
    assert not cache.damaged
    keys = [f"{rank}-{number}-{i}" for rank in range(2) for number in range(10) for i in range(3)]
    expected = [100.0 * rank + number for rank in range(2) for number in range(10) for _ in range(3)]
    assert cache.get(keys)["mean"][:, 0].tolist() == expected


class _Reader(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, cache: TensorCache) -> None:
        self.cache, self.locations = cache, cache.locate(["a", "b"])

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: int) -> torch.Tensor:
        return self.cache.read(self.locations[[item % 2]])["mean"]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_workers_read_the_same_entries(tmp_path: Path, start: str) -> None:
    cache = TensorCache(tmp_path)
    cache.add({"a": entry(1), "b": entry(2)})
    cache.get(["a"])  # mapped before the workers start
    loader = torch.utils.data.DataLoader(_Reader(cache), batch_size=None, num_workers=1, multiprocessing_context=start)
    assert [float(x[0, 0]) for x in loader] == [1.0, 2.0, 1.0, 2.0]


@pytest.mark.usefixtures("large")
def test_damage_that_a_data_worker_meets_is_told_in_one_sentence(tmp_path: Path) -> None:
    TensorCache(tmp_path).add({"a": entry(1), "b": entry(2)})
    cache = TensorCache(tmp_path)
    (victim,) = files(tmp_path)
    content = victim.read_bytes()
    flip_bit(victim, content.find(np.full(3, 2.0, dtype="<f4").tobytes()))
    loader = torch.utils.data.DataLoader(_Reader(cache), batch_size=None, num_workers=1)
    with pytest.raises(DamagedCache) as failure:
        list(loader)
    assert failure.value.exit_code == Exit.DATA
    assert failure.value.message.startswith(str(victim))
    assert "\n" not in failure.value.message


def test_opening_keeps_no_file_open(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    keys = [str(i) for i in range(40)]
    for key in keys:
        cache.add({key: entry(1)})
    before = len(os.listdir("/proc/self/fd"))
    cache.get(keys)
    assert len(os.listdir("/proc/self/fd")) - before < 10


def test_the_index_of_many_entries_is_numbers_only() -> None:
    index = cache_module._Index()
    hashed = cache_module._hashed(str(i) for i in range(20_000))
    for start in range(0, 20_000, 256):
        index.add(hashed[start : start + 256], np.arange(start, min(start + 256, 20_000)))
    assert np.array_equal(index.find(hashed[::-1]), np.arange(20_000)[::-1])
    assert len(pickle.dumps(index)) < 20_000 * (32 + 8) + 10_000
