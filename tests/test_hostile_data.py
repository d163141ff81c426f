"""Metadata, names, paths and a project's own files as a stranger could write them: read, or refused in one sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from badfiles import encoded, photo, write_corpus
from badweights import code
from conftest import TinyProject
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pogdiff_cli.data.images import IMAGE_SUFFIXES
from pogdiff_cli.data.metadata import MAX_LINE, clean_text
from pogdiff_cli.data.paths import BadPath, Folder, relative_path
from pogdiff_cli.data.rating_answers import BadExport, read_export
from pogdiff_cli.data.records import Records, read_records, safe_folder
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.config import Config, dotted
from pogdiff_cli.project.layout import Project, Run
from pogdiff_cli.project.loading import load_config
from pogdiff_cli.project.manifest import Manifest, read_manifest, write_manifest
from pogdiff_cli.project.yaml_reader import parse_yaml, read_yaml
from pogdiff_cli.project.yaml_writer import dump_yaml
from pogdiff_cli.stages.evaluate import read_samples
from pogdiff_cli.stages.road import for_run

PICTURE = encoded(photo(4, 4), "PNG")
ONE_FOLDER = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
NUMBERS = [True, 0, -1, 10**400, 1e308, float("inf"), float("nan")]
PLAIN = ["", "../x", "\x1b[31m", "=cmd()", "a" * 3000, "py:os:system", "hf:", "openai:", "onnx:", "timm:@"]
PLACEHOLDERS = ["{", "{}", "{name!r}", "{name:>9}"]
ODD = st.sampled_from([None, [], [[]], {}, {"a": [1]}, *NUMBERS, *PLAIN, *PLACEHOLDERS])
VALUES = st.recursive(
    ODD | st.text(max_size=6) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
KEYS = list(dotted(Config(), "", operational="with"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "s1").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (root / "s1" / name).write_bytes(PICTURE)
    return root


def outcome(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the function returns, or the refusal that it raises; any other exception fails the test."""
    try:
        return function(*arguments, **named)
    except (PogdiffError, BadPath, BadExport) as problem:
        return problem


def read_or_refused(images: Path, metadata: Path) -> Records | None:
    """The records, or None where they are refused as bad data in one sentence that names the file."""
    found = outcome(read_records, images, metadata)
    if isinstance(found, Records):
        return found
    assert found.exit_code == Exit.DATA, found
    assert metadata.name in found.message, found
    return None


# metadata


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('"identity": null', "identity is empty"),
        ('"identity": NaN', "identity is float, not text"),
        ('"identity": true', "identity is bool, not text"),
        ('"identity": {"a": [1]}', "identity is dict, not text"),
        ('"identity": "\\ud800"', "control character U+D800"),
        ('"identity": "a\\u009b31m"', "control character U+009B"),
        ('"identity": "a\\u0000"', "control character U+0000"),
        ('"identity": "\\u200b\\u2060"', "invisible"),
        ('"identity": "a", "\\u001b[31m": "x"', "control character U+001B"),
        ('"identity": "a", "\\ud800": "x"', "control character U+D800"),
        ('"identity": ' + "9" * 5000, "not a JSON object"),
        ('"identity": "a", "more": ' + "[" * 100_000 + "]" * 100_000, "not a JSON object"),
        ('"identity": "a", "text": "' + "x" * MAX_LINE + '"', "a line of more than"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_line(images: Path, row: str, said: str) -> None:
    metadata = images.parent / "m.jsonl"
    metadata.write_text(f'{{"file_name": "s1/b.png", "identity": "b"}}\n{{"file_name": "s1/a.png", {row}}}\n')
    with pytest.raises(PogdiffError, match=r"m\.jsonl:2: ") as caught:
        read_records(images, metadata)
    assert said in caught.value.message
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("value", ["1", "[]", "NaN", "{}"])
def test_a_file_name_that_is_no_text_is_said_to_be_none(images: Path, value: str) -> None:
    metadata = images.parent / "m.jsonl"
    metadata.write_text(f'{{"file_name": {value}}}\n')
    with pytest.raises(PogdiffError, match=r"file_name is \w+, not text"):
        read_records(images, metadata)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"file_name,identity\ns1/a.png,a\0b\n", "U\\+0000|NUL"),
        (b"file_name,identity\ns1/a.png,Ren\xe9\n", "utf-8"),
        ("file_name,identity\ns1/a.png,x\n".encode("utf-16"), "utf-8"),
        (b"file_name,identity\ns1/a.png," + b"x" * 200_000 + b"\n", "field larger"),
        (b"file_name,identity\ns1/a.png,x\n" + b"," * (MAX_LINE + 5), "a line of more than"),
        (b"file_name, file_name\ns1/a.png,a\n", "a column stands twice"),
    ],
)
def test_a_hostile_csv_is_refused(images: Path, content: bytes, said: str) -> None:
    metadata = images.parent / "m.csv"
    metadata.write_bytes(content)
    with pytest.raises(PogdiffError, match=said) as caught:
        read_records(images, metadata)
    assert caught.value.exit_code == Exit.DATA


def hostile_tables() -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa

    name, who = pa.array(["s1/a.png"]), pa.array(["a"])
    offsets = pa.py_buffer(np.array([0, 2], dtype=np.int32).tobytes())
    no_text = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    return {
        "a column twice": pa.Table.from_arrays([name, pa.array(["s1/b.png"])], names=["file_name"] * 2),
        "no UTF-8": pa.Table.from_arrays([name, no_text], names=["file_name", "identity"]),
        "a time after all times": pa.table({"file_name": name, "t": pa.array([2**62], pa.timestamp("us"))}),
        "nanoseconds": pa.table({"file_name": name, "t": pa.array([123_456_789], pa.timestamp("ns"))}),
        "a day after all days": pa.table({"file_name": name, "t": pa.array([2**31 - 1], pa.date32())}),
        "a zone that is none": pa.table({"file_name": name, "t": pa.array([1], pa.timestamp("us", tz="No/Where"))}),
        "a structure": pa.table({"file_name": name, "identity": pa.array([{"a": 1}])}),
        "no identity": pa.table({"file_name": name, "identity": pa.array([None], pa.string())}),
        "bytes": pa.table({"file_name": pa.array([b"s1/a.png"]), "identity": who}),
    }


@pytest.mark.parametrize("kind", list(hostile_tables()))
def test_a_hostile_parquet_file_is_refused(images: Path, kind: str) -> None:
    import pyarrow.parquet

    metadata = images.parent / "m.parquet"
    pyarrow.parquet.write_table(hostile_tables()[kind], metadata)
    assert kind in ("nanoseconds", "a time after all times") or read_or_refused(images, metadata) is None
    read_or_refused(images, metadata)


def test_a_parquet_file_with_flipped_bits_is_read_or_refused(images: Path) -> None:
    import random

    import pyarrow as pa
    import pyarrow.parquet

    metadata = images.parent / "m.parquet"
    pyarrow.parquet.write_table(
        pa.table({"file_name": ["s1/a.png", "s1/b.png"], "identity": ["a", "b"], "n": [1, 2]}), metadata
    )
    whole, draw, refused = metadata.read_bytes(), random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 5))):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        metadata.write_bytes(damaged)
        refused += read_or_refused(images, metadata) is None
    assert refused > 50


@settings(max_examples=60, suppress_health_check=ONE_FOLDER)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["file_name", "identity", "text", "split", "pose"]) | st.text(max_size=4),
            st.sampled_from(["s1/a.png", "s1/b.png", "train", "heldout"]) | VALUES,
            max_size=4,
        ),
        max_size=3,
    )
)
def test_any_rows_are_read_or_refused_with_their_file(images: Path, rows: list[dict[str, Any]]) -> None:
    metadata = images.parent / "m.jsonl"
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read_or_refused(images, metadata)
    assert records is None or set(records.file_names) <= {"s1/a.png", "s1/b.png"}


@settings(max_examples=60, suppress_health_check=ONE_FOLDER)
@given(st.sampled_from([".jsonl", ".csv", ".parquet"]), st.binary(max_size=80))
@example(".csv", b'file_name\n"s1/a.png"x\n')
@example(".jsonl", b"\xef\xbb\xbf\xef\xbb\xbf{}")
def test_any_bytes_are_read_or_refused_with_their_file(images: Path, ending: str, content: bytes) -> None:
    metadata = images.parent / f"m{ending}"
    metadata.write_bytes(content)
    read_or_refused(images, metadata)


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
SHOWN = TEXT.map(lambda text: "x" + text)


@settings(max_examples=60, suppress_health_check=ONE_FOLDER)
@given(st.lists(st.tuples(SHOWN, TEXT, st.sampled_from(["train", "heldout"])), min_size=2, max_size=2))
def test_what_is_written_as_jsonl_csv_and_parquet_is_read_alike(images: Path, rows: list[tuple[str, str, str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    names = ("s1/a.png", "s1/b.png")
    table = [
        {"file_name": name, "identity": who, "text": text, "split": split}
        for name, (who, text, split) in zip(names, rows, strict=True)
    ]
    lines = images.parent / "m.jsonl"
    lines.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table), encoding="utf-8")
    cells = io.StringIO(newline="")
    writer = csv.DictWriter(cells, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    (images.parent / "m.csv").write_bytes(cells.getvalue().encode())
    pyarrow.parquet.write_table(pa.Table.from_pylist(table), images.parent / "m.parquet")
    read = [read_records(images, images.parent / f"m{ending}") for ending in (".jsonl", ".csv", ".parquet")]
    for records in read:
        assert [records.name_of(row) for row in range(2)] == [clean_text(who) for who, _, _ in rows]
        assert records.texts == [clean_text(text) for _, text, _ in rows]
        assert records.heldout.tolist() == [split == "heldout" for _, _, split in rows]


# texts, names and paths


@given(st.text())
def test_clean_text_is_plain_and_cleaning_it_again_changes_nothing(text: str) -> None:
    controls = {c for c in " ".join(text.split()) if unicodedata.category(c) in ("Cc", "Cs")}
    if controls:
        with pytest.raises(ValueError, match="control character"):
            clean_text(text)
        return
    clean = clean_text(text)
    assert clean_text(clean) == clean
    assert clean == clean.strip()
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in clean)
    assert clean_text(unicodedata.normalize("NFD", text)) == clean


@settings(max_examples=150, suppress_health_check=ONE_FOLDER)
@given(
    st.text(alphabet=st.sampled_from("ab./\\:~ é\u0301") | st.characters(codec=None), max_size=12)
    | st.sampled_from(["s1/a.png", "./s1//a.png", "s1/../s1/a.png", "CON", "s1/a.png/", "s1/a.png\0", "C:a", "a" * 300])
)
def test_any_file_name_is_a_file_inside_or_refused(images: Path, name: str) -> None:
    inside = Folder(images)
    found = outcome(lambda: inside.regular_file(relative_path(name)))
    if isinstance(found, BadPath):
        assert str(found)
        return
    assert found.resolve().is_relative_to(images.resolve())
    assert found.is_file()


@given(st.text())
@example("../../etc")
@example("con.txt")
@example("a" * 1000)
def test_any_identity_has_a_folder_of_its_own_that_every_file_system_takes(identity: str) -> None:
    folder = safe_folder(identity)
    assert relative_path(folder) == folder
    assert "/" not in folder
    assert len(folder) <= 64
    assert folder.split(".")[0].casefold() not in ("con", "prn", "aux", "nul", "com1", "lpt1")
    assert not folder.endswith((".", " "))
    assert safe_folder(identity) == folder


def test_names_whose_short_digests_meet_have_different_folders() -> None:
    """With 32 bits two of some hundred thousand names of one slug share a folder; these two were found by trying."""
    import hashlib

    seen: dict[str, str] = {}
    for number in range(300_000):
        name = f"{number}!"[::-1]
        name = "".join(chr(0x4E00 + int(digit)) for digit in name[1:])
        short = hashlib.sha256(name.encode()).hexdigest()[:8]
        if short in seen and seen[short] != name:
            assert safe_folder(name) != safe_folder(seen[short])
            return
        seen[short] = name
    raise AssertionError("no two short digests met")


def test_one_name_in_two_normal_forms_is_one_identity(images: Path) -> None:
    for number, form in enumerate(("NFC", "NFD")):
        folder = images / unicodedata.normalize(form, "Zoë")
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.png").write_bytes(PICTURE)
    records = read_records(images, None)
    assert records.identity_names == ["s1", "Zoë"]
    assert records.counts().tolist() == [2, 2]


def test_names_that_differ_in_case_alone_are_two_people(images: Path) -> None:
    for name in ("ada", "Ada"):
        (images / name).mkdir()
        (images / name / "0.png").write_bytes(PICTURE)
    records = read_records(images, None)
    assert {"ada", "Ada"} <= set(records.identity_names)
    assert safe_folder("ada") != safe_folder("Ada")


# configuration and manifest


def nested(settings_: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in settings_.items():
        *parents, leaf = key.split(".")
        place = result
        for parent in parents:
            place[parent] = place[parent] if isinstance(place.get(parent), dict) else {}
            place = place[parent]
        place[leaf] = value
    return result


@settings(max_examples=100, suppress_health_check=ONE_FOLDER)
@given(st.dictionaries(st.sampled_from([*KEYS, "runs", "extractors", "train", "nothing"]), VALUES, max_size=3))
@example({"runs": {"../../x": {}}})
@example({"sample.prompt": "{name} {x}"})
@example({"sample.prompt": "{name:>999999999}"})
@example({"sample.prompt": "{name.__class__}{name}"})
@example({"sample.prompt": "{name"})
def test_any_configuration_is_read_or_refused(tmp_path: Path, wanted: dict[str, Any]) -> None:
    path = tmp_path / "pogdiff.yaml"
    path.write_text(dump_yaml(nested(wanted)), encoding="utf-8")
    config = outcome(load_config, path, environment={})
    if isinstance(config, PogdiffError):
        assert config.exit_code == Exit.USAGE
        return
    assert config.sample.prompt.format(name="Ada")
    assert all("/" not in name for name in config.runs)


@settings(max_examples=100, suppress_health_check=ONE_FOLDER)
@given(
    VALUES
    | st.dictionaries(
        st.sampled_from(["schema_version", "stages", "runs", "devices", "quarantine", "project"]),
        VALUES | st.dictionaries(st.text(max_size=4), VALUES, max_size=2),
        max_size=3,
    )
)
def test_any_manifest_is_read_or_refused_and_one_that_is_read_is_written_back(tmp_path: Path, values: Any) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(dump_yaml(values), encoding="utf-8")
    manifest = outcome(read_manifest, path)
    if isinstance(manifest, PogdiffError):
        assert "manifest.yaml" in manifest.message
        return
    write_manifest(path, manifest)
    assert read_manifest(path) == manifest


@settings(max_examples=150, suppress_health_check=ONE_FOLDER)
@given(
    st.binary(max_size=60)
    | st.text(alphabet="ab:-[]{}#&*!|>'\"%@`\n\t ?,\\xuUe0179.", max_size=40).map(lambda text: text.encode())
)
@example(b'a: "\\U00110000"')
@example(b'a: "\\ud800"')
@example(b'"\\udfff": 1')
@example(b"a: " + b"9" * 5000)
@example(b"a: 1e999")
def test_any_bytes_are_yaml_or_refused_and_what_is_read_is_written_back(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    document = outcome(read_yaml, path)
    if isinstance(document, PogdiffError):
        assert document.exit_code == Exit.USAGE
        assert "any.yaml:" in document.message
        return
    values = document.values
    assert repr(parse_yaml(dump_yaml(values)).values) == repr(values)  # not a number equals itself in words alone


# what lies in a project


@pytest.mark.parametrize("file", ["../../secret.png", "/etc/passwd", "link.png", "a\\b.png", "\0", "absent.png", ""])
def test_a_list_of_samples_shows_no_file_from_elsewhere(tmp_path: Path, file: str) -> None:
    run = Run("vanilla", tmp_path / "runs" / "vanilla")
    run.samples.mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PICTURE)
    (run.samples / "link.png").symlink_to(tmp_path / "secret.png")
    (run.samples / "good.png").write_bytes(PICTURE)
    for name in ("good.png", file):
        entry = {"identity": "a", "name": "Ada", "images": [{"seed": 0, "file": name}]}
        (run.samples / "samples.json").write_text(json.dumps([entry]))
        if name == "good.png":
            assert read_samples(run)[0].paths == (run.samples / "good.png",)
            continue
        with pytest.raises(PogdiffError, match=r"samples\.json is missing or damaged") as caught:
            read_samples(run)
        assert "pogdiff sample --run vanilla" in (caught.value.hint or "")


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', '[{"identity": "a"}]', '[{"images": 3}]'])
def test_a_damaged_list_of_samples_is_refused(tmp_path: Path, content: str) -> None:
    run = Run("vanilla", tmp_path / "runs" / "vanilla")
    run.samples.mkdir(parents=True)
    (run.samples / "samples.json").write_text(content)
    with pytest.raises(PogdiffError, match="damaged"):
        read_samples(run)


def test_a_manifest_gives_no_leave_to_run_code(project: TinyProject) -> None:
    from pogdiff_cli.engine.devices import select
    from pogdiff_cli.project.layout import open_project
    from pogdiff_cli.project.manifest import StageRecord
    from pogdiff_cli.stages.context import Context

    opened: Project = open_project(project.root)
    typed = {
        "caption.captioner": "py:own:describe",
        "caption.allow_python": True,
        "evaluate.judge": {"allow_python": True},
        "extractors": {"py": {"allow_python": True}},
        "train.a1": 0.5,
    }
    manifest = Manifest()
    manifest.put("runs/x/train", StageRecord(command="x", state="done", facts={"overrides": typed}))
    opened.write_manifest(manifest)
    context = for_run(Context(project=opened, devices=select("none"), command="x"), "x")
    assert context.project.config.train.a1 == 0.5
    assert not context.project.config.caption.allow_python
    assert not context.project.config.evaluate.judge.allow_python
    assert context.project.config.extractors == opened.config.extractors


def test_processes_that_are_started_import_nothing_from_the_current_folder(tmp_path: Path) -> None:
    """``python -m`` would: a project that brings a click.py of its own would run it."""
    canary, elsewhere = tmp_path / "canary", tmp_path / "elsewhere"
    elsewhere.mkdir()
    start = tmp_path / "start" / "start.py"
    start.parent.mkdir()
    start.write_text(
        "from pogdiff_cli.engine.launch import Launch, launch\n"
        "if __name__ == '__main__':\n    raise SystemExit(launch(['--version'], Launch(processes=1)))\n"
    )
    for name in ("click.py", "runpy.py", "pogdiff_cli.py", "rich.py", "torch.py"):
        (elsewhere / name).write_text(code(canary))
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, start],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pogdiff" in done.stdout
    assert not canary.exists()


# answers of raters


@settings(max_examples=80, suppress_health_check=ONE_FOLDER)
@given(
    st.binary(max_size=60)
    | st.dictionaries(st.sampled_from(["schema", "page", "rater", "answers", "exported"]), VALUES, max_size=5).map(
        lambda values: json.dumps({"schema": "ratings/1", "page": "p", "rater": "r", **values}).encode()
    )
)
def test_any_answers_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    export = outcome(read_export, path)
    if isinstance(export, BadExport):
        assert str(export)
        return
    assert all(isinstance(value, int) for value in export.answers.values())
    assert export.rater.strip()


# images, on their way into a project


def test_bad_images_are_set_aside_before_training_and_counted(project: TinyProject, pictures: Path) -> None:
    """Every bad file of the corpus beside good ones: in the manifest with its reason, and trained on by nobody."""
    corpus = write_corpus(project.root / "corpus")
    folder = Path(shutil.copytree(pictures, project.root / "pictures")) / "Ada Lovelace"
    project = project.configure("data.images=pictures")
    bad = {name: reason for name, reason in corpus.bad.items() if (corpus.root / name).is_file()}
    bad = {name: reason for name, reason in bad.items() if Path(name).suffix in IMAGE_SUFFIXES}
    before = json.loads(project("inspect", "--json").out)
    for name in bad:
        (folder / name).write_bytes((corpus.root / name).read_bytes())
    said = project("index", "--gpus", "none", "--set", "data.max_unreadable=0.9")
    assert said.status == 0, said.err
    assert f"{len(bad)} images cannot be used" in said.err
    quarantine = read_manifest(project.root / "manifest.yaml").quarantine
    assert {Path(name).name for name in quarantine} == set(bad)
    assert all(bad[Path(name).name] in reason for name, reason in quarantine.items())
    rows = np.load(project.root / "artifacts" / "index" / "neighbours.npy", allow_pickle=False)
    assert len(rows) == before["train_images"]
    after = json.loads(project("inspect", "--json", "--set", "data.max_unreadable=0.9").out)
    assert after["train_images"] == before["train_images"]
    assert len(after["unreadable"]) == len(bad)
    refused = project("index", "--gpus", "none")
    assert refused.status == Exit.DATA
    assert f"{len(bad)} of {len(bad) + before['images']} images cannot be used" in refused.err


@pytest.mark.parametrize("text", ["1e999", "-1e999", "9" * 400 + ".0"])
def test_a_number_beyond_all_numbers_is_refused(text: str) -> None:
    with pytest.raises(PogdiffError, match=r"<text>:2: .* is larger than any number"):
        parse_yaml(f"a: 1\nb: {text}\n")
    assert parse_yaml("b: -.inf").values == {"b": float("-inf")}


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\udfff": 1}'])
def test_half_a_character_is_refused(text: str) -> None:
    """It could be written into no file again."""
    with pytest.raises(PogdiffError, match="<text>:2: half of a surrogate pair"):
        parse_yaml(f"a: 1\nb: {text}\n")
