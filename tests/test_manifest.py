"""The manifest holds facts: it comes back as it was written, and a damaged or newer one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.manifest import SCHEMA, Device, Manifest, StageRecord, read_manifest, write_manifest

TRICKY = st.sampled_from(
    ["1e-5", "1e5", "no", "0123", "12:30:45", "<script>alert(1)</script>", "a\nb", "\x85", "~", "null", "true", ""]
)
TEXT = st.text(max_size=20) | TRICKY
INSIDE = TEXT.filter(lambda path: not path.startswith("/") and ".." not in path.split("/"))
FINITE = st.floats(allow_nan=False, allow_infinity=False)  # facts are JSON values
SCALAR = TEXT | st.none() | st.booleans() | st.integers(-(2**70), 2**70) | FINITE
VALUE = SCALAR | st.lists(SCALAR, max_size=3) | st.dictionaries(TEXT, SCALAR, max_size=3)
RECORD = st.builds(
    StageRecord,
    command=TEXT,
    state=st.sampled_from(["running", "done", "failed"]),
    parameters=st.dictionaries(TEXT, VALUE, max_size=3),
    inputs=st.dictionaries(TEXT, TEXT, max_size=3),
    outputs=st.dictionaries(INSIDE, TEXT, max_size=3),
    devices=st.lists(TEXT, max_size=2),
    duration_seconds=st.floats(0, 1e9),
    facts=st.dictionaries(TEXT, VALUE, max_size=3),
)
MANIFEST = st.builds(
    Manifest,
    project=TEXT,
    devices=st.lists(st.builds(Device, kind=st.sampled_from(["cuda", "cpu"]), name=TEXT), max_size=2),
    quarantine=st.dictionaries(TEXT, TEXT, max_size=3),
    stages=st.dictionaries(TEXT, RECORD, max_size=2),
    runs=st.dictionaries(TEXT, st.dictionaries(TEXT, RECORD, max_size=2), max_size=2),
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(manifest=MANIFEST)
@example(manifest=Manifest(project="1e-5", quarantine={"no": "<script>", "0123": "a\nb", "x: y": "# c"}))
def test_what_is_written_is_read_back(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "manifest.yaml"
    write_manifest(path, manifest)
    assert read_manifest(path) == manifest


def test_what_one_reader_does_to_it_no_other_sees_until_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    write_manifest(path, Manifest(stages={"index": StageRecord(command="x", state="done", facts={"deep": {"k": 1}})}))
    mine = read_manifest(path)
    mine.stages["index"].facts["deep"]["k"] = 2
    assert read_manifest(path).stages["index"].facts == {"deep": {"k": 1}}
    write_manifest(path, mine)
    assert read_manifest(path).stages["index"].facts == {"deep": {"k": 2}}


def test_a_manifest_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(f"schema_version: {SCHEMA + 1}\nsomething_new: [1, 2]\n")
    with pytest.raises(PogdiffError, match=f"schema {SCHEMA + 1}.*up to {SCHEMA}") as caught:
        read_manifest(path)
    assert "newer pogdiff" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("stages: {caption: {command: x, state: finished}}\n", "stages.caption.state"),
        ("stages: {caption: {state: done}}\n", "stages.caption.command"),
        ("stages: {caption: {command: x, state: done, outputs: [a]}}\n", "stages.caption.outputs"),
        ("stages: {caption: {command: x, state: done, outputs: {../../x: a}}}\n", "stages.caption.outputs"),
        ("stages: {caption: {command: x, state: done, logs: {/etc/passwd: a}}}\n", "stages.caption.logs"),
        ("runs: 3\n", "runs"),
        ("unheard_of: 1\n", "unheard_of"),
        ("schema_version: old\n", "schema_version"),
    ],
)
def test_a_damaged_manifest_is_refused_at_the_place_of_the_damage(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    with pytest.raises(PogdiffError, match=f"damaged at '{place}'") as caught:
        read_manifest(path)
    assert caught.value.exit_code == Exit.FAILURE
    assert caught.value.hint


@pytest.mark.parametrize("text", ["- a\n- b\n", "text\n", "5\n"])
def test_a_manifest_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    with pytest.raises(PogdiffError, match="damaged"):
        read_manifest(path)


def test_a_torn_manifest_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    write_manifest(path, Manifest(stages={"caption": StageRecord(command='say "hi": now', state="done")}))
    path.write_text(path.read_text() + "runs: {vanilla: [\n")
    with pytest.raises(PogdiffError, match=r"manifest\.yaml:\d+: "):
        read_manifest(path)


@pytest.mark.parametrize("key", ["caption", "runs/vanilla/train", "runs/a.b-c/evaluate"])
def test_a_record_is_found_under_the_key_it_was_put_under(key: str) -> None:
    manifest = Manifest()
    record = StageRecord(command="pogdiff", state="done")
    manifest.put(key, record)
    assert manifest.record(key) is record
    others = ["index", "runs/vanilla/sample", "runs/other/train"]
    assert all(manifest.record(other) is None for other in others)


def test_the_file_says_that_it_is_the_programs(tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    facts: dict[str, Any] = {"seconds": 1e-05}
    write_manifest(path, Manifest(stages={"index": StageRecord(command="x", state="done", facts=facts)}))
    assert path.read_text().startswith("# Written by pogdiff")
