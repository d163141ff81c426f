"""Scanning images once, and the picture of the long tail that follows."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from badfiles import encoded, photo, write_corpus
from PIL import Image

from pogdiff_cli.data import scan as scan_module
from pogdiff_cli.data.copies import difference_hash, near_copies
from pogdiff_cli.data.records import Records, read_records
from pogdiff_cli.data.scan import digest_of, refuse_too_many_problems, scan
from pogdiff_cli.data.summary import gini, summarise
from pogdiff_cli.errors import Exit, PogdiffError


def records_of(names: list[str], identities: list[str] | None = None, **columns: object) -> Records:
    people = identities or [name.split("/")[0] for name in names]
    known = sorted(set(people))
    parts: dict[str, object] = {
        "file_names": names,
        "identity": np.array([known.index(person) for person in people], dtype=np.int32),
        "identity_names": known,
        "texts": [""] * len(names),
        "heldout": np.zeros(len(names), dtype=bool),
        "attributes": {},
    }
    return Records(**{**parts, **columns})  # type: ignore[arg-type]


@pytest.fixture
def project(tmp_path: Path) -> tuple[Records, Path]:
    """Ada has 4 photos, Bo 2, Cy 1; ada/1 is also held out as bo/1, and ada/3 is cut short."""
    root = tmp_path / "images"
    for person, count in (("ada", 4), ("bo", 2), ("cy", 1)):
        (root / person).mkdir(parents=True)
        for number in range(count):
            (root / person / f"{number}.png").write_bytes(
                encoded(photo(30, 20, seed=100 * ord(person[0]) + number), "PNG")
            )
    (root / "bo" / "1.png").write_bytes((root / "ada" / "1.png").read_bytes())
    cut = root / "ada" / "3.png"
    cut.write_bytes(cut.read_bytes()[:500])
    records = read_records(root, None)
    heldout = np.array([name == "bo/1.png" for name in records.file_names])
    texts = ["ada at sea", "a photo of ada", "", "ada", "bo", "someone", "cy"]
    return records_of(records.file_names, heldout=heldout, texts=texts), root


def test_a_scan_says_of_every_image_whether_it_serves(project: tuple[Records, Path]) -> None:
    records, root = project
    found = scan(records, root)
    assert found.ok.tolist() == [True, True, True, False, True, True, True]
    assert [problem.file_name for problem in found.problems] == ["ada/3.png"]
    assert found.sizes[0].tolist() == [30, 20]
    assert found.sizes[3].tolist() == [0, 0]
    assert found.sha256[3] == ""
    assert found.sha256[0] == hashlib.sha256((root / "ada/0.png").read_bytes()).hexdigest()


def test_the_whole_corpus_is_sorted_into_good_and_bad_with_reasons(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    names = [*corpus.good, *corpus.bad]
    found = scan(records_of(names, ["x"] * len(names)), corpus.root)
    assert found.ok.tolist() == [True] * len(corpus.good) + [False] * len(corpus.bad)
    reasons = {problem.file_name: problem.reason for problem in found.problems}
    assert all(word in reasons[name] for name, word in corpus.bad.items())
    noted = {note.file_name for note in found.notes}
    assert {"really_png.jpg", "turned.jpg", "moving.gif", "deep.png", "alpha.png"} <= noted
    assert "plain.png" not in noted


def test_a_second_scan_decodes_nothing_and_says_the_same(
    project: tuple[Records, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, root = project
    cache = tmp_path / "scan.jsonl"
    first = scan(records, root, cache=cache)
    decoded: list[str] = []
    original = scan_module.decode_bytes
    monkeypatch.setattr(scan_module, "decode_bytes", lambda data, name: (decoded.append(name), original(data, name))[1])
    second = scan(records, root, cache=cache)
    assert decoded == []
    assert second.sha256 == first.sha256
    assert second.problems == first.problems
    assert second.notes == first.notes
    assert np.array_equal(second.sizes, first.sizes)
    (root / "cy" / "0.png").write_bytes(encoded(photo(31, 20), "PNG"))
    third = scan(records, root, cache=cache)
    assert decoded == ["0.png"]
    assert third.sizes[6].tolist() == [31, 20]


def test_a_file_replaced_at_the_same_size_and_time_is_read_again(project: tuple[Records, Path], tmp_path: Path) -> None:
    records, root = project
    cache = tmp_path / "scan.jsonl"
    path = root / "cy" / "0.png"
    content = path.read_bytes()
    before = path.stat()
    first = scan(records, root, cache=cache)
    other = tmp_path / "other.png"
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert scan(records, root, cache=cache).sha256[6] != first.sha256[6]


def test_a_damaged_cache_costs_time_and_nothing_else(project: tuple[Records, Path], tmp_path: Path) -> None:
    records, root = project
    cache = tmp_path / "scan.jsonl"
    expected = scan(records, root, cache=cache)
    whole = cache.read_bytes()
    lines = whole.splitlines(keepends=True)
    wrong = json.dumps({**json.loads(lines[0]), "schema": 0, "sha256": "f" * 64}).encode() + b"\n"
    for damaged in (
        whole[:-7],
        b"\xff\xfe\n" + whole,
        b"{}\n[]\nnull\n" + lines[1],
        wrong,
        b"[" * 50_000,
        b"",
    ):
        cache.write_bytes(damaged)
        found = scan(records, root, cache=cache)
        assert found.sha256 == expected.sha256
        assert found.problems == expected.problems
        assert scan(records, root, cache=cache).sha256 == expected.sha256


def test_the_cache_forgets_files_that_are_gone(project: tuple[Records, Path], tmp_path: Path) -> None:
    records, root = project
    cache = tmp_path / "scan.jsonl"
    scan(records, root, cache=cache)
    scan(records.select(np.array([0])), root, cache=cache)
    assert [json.loads(line)["file_name"] for line in cache.read_text().splitlines()] == ["ada/0.png"]


def test_the_digest_sees_every_change_but_not_the_order(project: tuple[Records, Path]) -> None:
    records, root = project
    base = digest_of(records, scan(records, root))
    backwards = records.select(np.arange(len(records))[::-1])
    assert digest_of(backwards, scan(backwards, root)) == base
    changed = [
        records_of(records.file_names, texts=["x"] * 7, heldout=records.heldout),
        records_of(records.file_names, texts=records.texts),
        records_of(records.file_names, ["ada"] * 7, texts=records.texts, heldout=records.heldout),
        records_of(records.file_names, texts=records.texts, heldout=records.heldout, attributes={"pose": ["l"] * 7}),
    ]
    assert len({base, *(digest_of(other, scan(other, root)) for other in changed)}) == 5
    # the cut file is no part of it
    (root / "ada" / "3.png").write_bytes(b"cut otherwise")
    assert digest_of(records, scan(records, root)) == base
    (root / "ada" / "0.png").write_bytes(encoded(photo(9, 9), "PNG"))
    assert digest_of(records, scan(records, root)) != base


def test_too_many_unusable_images_fail_with_examples(project: tuple[Records, Path]) -> None:
    records, root = project
    found = scan(records, root)
    refuse_too_many_problems(found, at_most=0.2)
    with pytest.raises(PogdiffError, match=r"1 of 7 images cannot be used \(ada/3\.png") as caught:
        refuse_too_many_problems(found, at_most=0.1)
    assert caught.value.exit_code == Exit.DATA
    only_bad = scan(records.select(np.array([3])), root)
    with pytest.raises(PogdiffError, match="1 of 1"):
        refuse_too_many_problems(only_bad, at_most=1.0)


def test_gini_agrees_with_its_definition_by_pairs() -> None:
    counts = np.array([30, 30, 8, 2, 2, 1])
    pairs = np.abs(counts[:, None] - counts[None]).sum() / (2 * len(counts) ** 2 * counts.mean())
    assert gini(counts) == pytest.approx(pairs, abs=1e-12)
    assert gini([5, 5, 5]) == pytest.approx(0.0, abs=1e-15)
    assert gini([0, 0, 0, 12]) == pytest.approx(3 / 4)  # one of m has all: 1 - 1/m
    assert gini([]) == 0.0


def test_the_summary_tells_the_tail_and_what_is_wrong(project: tuple[Records, Path]) -> None:
    records, root = project
    facts = summarise(
        records,
        scan(records, root),
        few_at_most=1,
        many_at_least=3,
        tokens=lambda text: len(text.split()),
        token_limit=3,
    )
    assert (facts["images"], facts["train_images"], facts["heldout_images"], facts["identities"]) == (
        6,
        5,
        1,
        3,
    )
    assert [(row["identity"], row["train"], row["heldout"], row["group"]) for row in facts["counts"]] == [
        ("ada", 3, 0, "many"),
        ("bo", 1, 1, "few"),
        ("cy", 1, 0, "few"),
    ]
    assert facts["imbalance_ratio"] == 3.0
    assert facts["gini"] == pytest.approx(gini([3, 1, 1]))
    assert facts["groups"]["few"] == {"identities": 2, "images": 2, "share": 0.4}
    assert facts["under_two_images"] == ["bo", "cy"]
    assert [row["file_name"] for row in facts["unreadable"]] == ["ada/3.png"]
    assert facts["duplicates"] == [["ada/1.png", "bo/1.png"]]
    assert facts["leakage"] == [["ada/1.png", "bo/1.png"]]
    assert facts["shared_between_identities"] == [["ada/1.png", "bo/1.png"]]
    assert facts["empty_captions"] == ["ada/2.png"]
    assert facts["captions_with_name_cut"] == ["ada/1.png"]
    assert facts["captions_without_name"] == ["bo/1.png"]
    assert facts["warnings"][0].startswith("1 image(s) in both train and held-out")
    assert json.loads(json.dumps(facts)) == facts


def test_a_clean_balanced_set_has_no_warnings(tmp_path: Path) -> None:
    names = [f"{person}/{number}.png" for person in "ab" for number in range(2)]
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(photo(8, 8, seed), "PNG"))
    records = records_of(names)
    facts = summarise(records, scan(records, tmp_path), few_at_most=2, many_at_least=20)
    assert facts["warnings"] == []
    assert facts["imbalance_ratio"] == 1.0
    assert facts["captions_with_name_cut"] is None


def test_nothing_to_train_on_is_the_first_warning(project: tuple[Records, Path]) -> None:
    records, root = project
    bad = records.select(np.array([3]))
    facts = summarise(bad, scan(bad, root), few_at_most=1, many_at_least=3)
    assert facts["warnings"][0] == "no image is left to train on"
    assert facts["gini"] is None


def test_one_photograph_saved_twice_is_a_near_copy_and_another_one_is_not() -> None:
    smooth = photo(6, 6, seed=1).resize((120, 90), Image.Resampling.BICUBIC)
    hashes = [
        ("original", difference_hash(smooth)),
        ("smaller", difference_hash(smooth.resize((60, 45)))),
        ("other", difference_hash(photo(6, 6, seed=2).resize((120, 90), Image.Resampling.BICUBIC))),
    ]
    assert near_copies(hashes) == [["original", "smaller"]]


def test_near_copies_agree_with_comparing_all_pairs() -> None:
    rng = np.random.default_rng(0)
    base = int(rng.integers(2**62))
    values = [base] + [base ^ (1 << int(a)) ^ (1 << int(b)) for a, b in rng.integers(0, 64, (30, 2))]
    values += [int(value) for value in rng.integers(2**62, size=30)]
    for distance in (0, 2, 7):
        grouped = {
            n for group in near_copies(((str(i), v) for i, v in enumerate(values)), distance=distance) for n in group
        }
        close = {
            str(i)
            for i, v in enumerate(values)
            if any((v ^ w).bit_count() <= distance for j, w in enumerate(values) if j != i)
        }
        assert grouped == close
    with pytest.raises(ValueError, match="distance"):
        near_copies([], distance=8)
