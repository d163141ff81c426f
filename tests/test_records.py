"""Metadata and folders into columns: what is read, what is refused, and where."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from badfiles import encoded, photo
from hypothesis import given, settings
from hypothesis import strategies as st

from pogdiff_cli.data.paths import BadPath, relative_path
from pogdiff_cli.data.records import Records, natural_key, read_records, safe_folder
from pogdiff_cli.errors import Exit, PogdiffError

PICTURE = encoded(photo(4, 4), "PNG")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in ("s1/a.png", "s1/b.png", "s2/a.png", "s10/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PICTURE)
    return root


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def refused(images: Path, *rows: Any) -> PogdiffError:
    metadata = write_jsonl(images.parent / "metadata.jsonl", *rows)
    with pytest.raises(PogdiffError) as caught:
        read_records(images, metadata)
    assert caught.value.exit_code == Exit.DATA
    return caught.value


def columns(records: Records) -> list[tuple[str, str, str, bool]]:
    names = [records.name_of(row) for row in range(len(records))]
    return list(zip(records.file_names, names, records.texts, records.heldout.tolist(), strict=True))


def test_a_folder_per_identity_is_read_in_natural_order(images: Path) -> None:
    records = read_records(images, None)
    assert records.file_names == ["s1/a.png", "s1/b.png", "s2/a.png", "s10/a.png"]
    assert records.identity_names == ["s1", "s2", "s10"]
    assert records.counts().tolist() == [2, 1, 1]


def test_jsonl_csv_and_parquet_of_the_same_rows_give_the_same_records(images: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "file_name": "s1/a.png",
            "identity": "Zoë, the 1st",
            "text": 'a "photo"',
            "split": "train",
            "pose": "left",
        },
        {"file_name": "s2/a.png", "identity": "Bo", "text": "", "split": "heldout", "pose": ""},
    ]
    jsonl = write_jsonl(tmp_path / "m.jsonl", *rows)
    csv = tmp_path / "m.csv"
    csv.write_text(
        'file_name,identity,text,split,pose\ns1/a.png,"Zoë, the 1st","a ""photo""",train,left\ns2/a.png,Bo,,heldout,\n',
        encoding="utf-8",
    )
    parquet = tmp_path / "m.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    expected = [("s1/a.png", "Zoë, the 1st", 'a "photo"', False), ("s2/a.png", "Bo", "", True)]
    for metadata in (jsonl, csv, parquet):
        records = read_records(images, metadata)
        assert columns(records) == expected
        assert records.attributes == {"pose": ["left", ""]}


def test_parquet_without_pyarrow_says_what_to_install(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "m.parquet"
    metadata.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PogdiffError, match="pip install pyarrow") as caught:
        read_records(images, metadata)
    assert caught.value.exit_code == Exit.MISSING


def test_a_damaged_parquet_file_is_bad_data(images: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "m.parquet"
    metadata.write_bytes(b"PAR1 and then nothing of use PAR1")
    with pytest.raises(PogdiffError, match="cannot be read as Parquet") as caught:
        read_records(images, metadata)
    assert caught.value.exit_code == Exit.DATA


def test_the_first_folder_is_the_identity_where_no_column_says_otherwise(images: Path, tmp_path: Path) -> None:
    metadata = write_jsonl(
        tmp_path / "m.jsonl", {"file_name": "s2/a.png"}, {"file_name": "s1/a.png", "identity": "Ada"}
    )
    assert [row[1] for row in columns(read_records(images, metadata))] == ["s2", "Ada"]
    assert [row[1] for row in columns(read_records(images, metadata, identity_from="folder"))] == ["s2", "s1"]


def test_a_caption_file_beside_the_image_serves_where_there_is_no_text(images: Path, tmp_path: Path) -> None:
    (images / "s1" / "a.txt").write_text("  one\n line ", encoding="utf-8")
    (images / "s1" / "b.txt").write_text("unused", encoding="utf-8")
    metadata = write_jsonl(tmp_path / "m.jsonl", {"file_name": "s1/a.png"}, {"file_name": "s1/b.png", "text": "own"})
    assert read_records(images, metadata).texts == ["one line", "own"]
    assert read_records(images, None).texts == ["one line", "unused", "", ""]


def test_text_is_normalised_and_line_separators_inside_json_do_not_break_lines(images: Path, tmp_path: Path) -> None:
    line = json.dumps({"file_name": "s1/a.png", "text": "e\u0301\u2028x"}, ensure_ascii=False)
    metadata = tmp_path / "m.jsonl"
    metadata.write_text("\ufeff" + line + "\n\n", encoding="utf-8")
    assert read_records(images, metadata).texts == ["\u00e9 x"]


def test_select_keeps_codes_and_every_column(images: Path, tmp_path: Path) -> None:
    metadata = write_jsonl(
        tmp_path / "m.jsonl",
        {"file_name": "s1/a.png", "pose": "left"},
        {"file_name": "s2/a.png", "split": "heldout"},
        {"file_name": "s10/a.png", "age": 7},
    )
    records = read_records(images, metadata)
    assert records.train.file_names == ["s1/a.png", "s10/a.png"]
    assert records.held_out.file_names == ["s2/a.png"]
    assert records.train.identity.tolist() == [0, 2]
    assert records.train.counts().tolist() == [1, 0, 1]
    assert records.attributes == {"pose": ["left", "", ""], "age": ["", "", "7"]}
    assert records.select(np.array([2, 0])).attributes["age"] == ["7", ""]
    assert records.rows_of(2).tolist() == [2]
    with pytest.raises(ValueError, match="mask"):
        records.select(np.array([True]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"filename": "s1/a.png"}, "Did you mean 'file_name'"),
        ({"image": "s1/a.png"}, "Did you mean to call 'image' 'file_name'"),
        ({"file_name": "s1/b.png", "idenity": "x"}, "Did you mean 'identity'"),
        ({"file_name": "s1/b.png", "Split": "heldout"}, "Did you mean 'split'"),
        ({"file_name": "s1/b.png", "identity": "  "}, "identity is empty"),
        ({"file_name": "s1/b.png", "identity": "x" * 201}, "identity is longer"),
        ({"file_name": "s1/b.png", "identity": ["a"]}, "identity is list"),
        ({"file_name": "s1/b.png", "split": "test"}, "split 'test' is unknown"),
        ({"file_name": "s1/b.png", "text": "a\x1b[31m"}, "control character"),
        ({"file_name": "s1/a.png"}, "already named by"),
        ({"file_name": "./s1//a.png"}, "already named by"),
        ({"file_name": "s1/absent.png"}, "does not exist"),
        ({"file_name": "s1"}, "not a regular file"),
        ('{"file_name": "s1/b.png"', "not a JSON object"),
        ('["s1/b.png"]', "not a JSON object"),
        ('{"file_name": "s1/b.png", "text": "a", "text": "b"}', "a key stands twice"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_a_mistake_is_refused_with_its_file_and_line(images: Path, row: Any, message: str) -> None:
    error = refused(images, {"file_name": "s1/a.png"}, row)
    assert message in str(error)
    assert "metadata.jsonl:2:" in error.message


def test_bytes_that_are_not_utf8_are_refused_with_their_line(images: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "m.jsonl"
    metadata.write_bytes(b'{"file_name": "s1/a.png"}\n{"file_name": "s1/\xff.png"}\n')
    with pytest.raises(PogdiffError, match=r"m\.jsonl:2: not a JSON object"):
        read_records(images, metadata)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name,identity\ns1/a.png,x,y\n", r"m\.csv:2: 3 cells under 2 columns"),
        ("file_name,file_name\ns1/a.png,x\n", "a column stands twice"),
        ('file_name\n"s1/a.png\n', "cannot be read after line 1"),
        ("name\ns1/a.png\n", "column 'file_name' is missing"),
        ("", "names no image"),
    ],
)
def test_a_broken_csv_is_refused(images: Path, tmp_path: Path, content: str, message: str) -> None:
    metadata = tmp_path / "m.csv"
    metadata.write_text(content)
    with pytest.raises(PogdiffError, match=message):
        read_records(images, metadata)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "absolute"),
        ("C:/a.png", "absolute"),
        ("../secret.png", r"\.\."),
        ("s1/../../secret.png", r"\.\."),
        ("s1\\a.png", "backslash"),
        ("s1/a\0.png", "control character"),
        ("s1/a\n.png", "control character"),
        ("", "empty"),
        (".", "names no file"),
        ("a" * 256 + ".png", "too long"),
        ("a/" * 600 + "b.png", "too long"),
        ("s1/\ud800.png", "control character"),
    ],
)
def test_a_name_that_could_leave_the_folder_is_refused(name: str, reason: str) -> None:
    with pytest.raises(BadPath, match=reason):
        relative_path(name)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab./\\:\0~ é"), max_size=12))
def test_an_accepted_name_always_stays_below_its_root(name: str) -> None:
    try:
        relative = relative_path(name)
    except BadPath:
        return
    root = Path("/data/images")
    inside = Path(os.path.normpath(root / relative))
    assert inside.is_relative_to(root)
    assert inside != root
    assert relative_path(relative) == relative


def test_links_are_followed_inside_the_folder_and_refused_outside(images: Path) -> None:
    outside = images.parent / "secret.png"
    outside.write_bytes(PICTURE)
    (images / "s2" / "inside.png").symlink_to(images / "s1" / "a.png")
    metadata = write_jsonl(images.parent / "m.jsonl", {"file_name": "s2/inside.png"})
    assert len(read_records(images, metadata)) == 1
    (images / "s2" / "link.png").symlink_to(outside)
    (images / "s3").symlink_to(images.parent)
    assert "symbolic link" in str(refused(images, {"file_name": "s2/link.png"}))
    assert "symbolic link" in str(refused(images, {"file_name": "s3/secret.png"}))
    with pytest.raises(PogdiffError, match="symbolic link"):
        read_records(images, None)


def test_a_link_to_a_folder_whose_name_merely_begins_alike_is_outside(images: Path) -> None:
    beside = images.parent / "images2"
    beside.mkdir()
    (beside / "a.png").write_bytes(PICTURE)
    (images / "s2" / "link.png").symlink_to(beside / "a.png")
    assert "symbolic link" in str(refused(images, {"file_name": "s2/link.png"}))


def test_a_fifo_is_refused_and_never_opened(images: Path) -> None:
    os.mkfifo(images / "s1" / "pipe.png")
    assert "not a regular file" in str(refused(images, {"file_name": "s1/pipe.png"}))


def test_a_caption_file_that_is_a_link_to_elsewhere_is_refused(images: Path) -> None:
    secret = images.parent / "secret.txt"
    secret.write_text("secret")
    (images / "s1" / "a.txt").symlink_to(secret)
    assert "symbolic link" in str(refused(images, {"file_name": "s1/a.png"}))


def test_an_image_without_folder_and_column_has_no_identity(images: Path) -> None:
    (images / "loose.png").write_bytes(PICTURE)
    assert "has no identity" in str(refused(images, {"file_name": "loose.png"}))


def test_empty_and_absent_sources_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for images, metadata, message in (
        (tmp_path / "absent", None, "does not exist"),
        (empty, None, "names no image"),
        (empty, tmp_path / "absent.jsonl", "does not exist"),
        (empty, tmp_path / "m.yaml", "no metadata file"),
    ):
        with pytest.raises(PogdiffError, match=message) as caught:
            read_records(images, metadata)
        assert caught.value.exit_code == Exit.DATA


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
def test_every_identity_gets_a_folder_name_that_is_one_plain_component(identity: str) -> None:
    folder = safe_folder(identity)
    assert 1 <= len(folder) <= 64
    assert folder.isascii()
    assert all(character.isalnum() or character in "-_." for character in folder)
    assert folder not in (".", "..")
    assert not folder.startswith((".", "-"))


@settings(max_examples=100, deadline=None)
@given(st.sets(st.text(alphabet="ab <>./-_é", min_size=1, max_size=6), min_size=2, max_size=20))
def test_different_identities_get_different_folders(identities: set[str]) -> None:
    assert len({safe_folder(identity) for identity in identities}) == len(identities)


def test_plain_identities_keep_their_names_and_no_identity_can_pose_as_anothers_folder() -> None:
    assert safe_folder("Albert_Einstein") == "Albert_Einstein"
    assert safe_folder("s21") == "s21"
    hostile = safe_folder("../x")
    assert safe_folder(hostile) != hostile
    assert safe_folder("CON") != "CON"


def test_natural_order_compares_numbers_as_numbers() -> None:
    assert sorted(["s10", "s2", "S1", "10", "9"], key=natural_key) == ["9", "10", "S1", "s2", "s10"]
