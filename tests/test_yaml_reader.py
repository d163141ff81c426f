"""The user's YAML is read as it was meant, or refused with its line number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project import yaml_reader
from pogdiff_cli.project.yaml_reader import MAX_BYTES, MAX_DEPTH, MAX_OWN_BYTES, parse_scalar, parse_yaml, read_yaml
from pogdiff_cli.project.yaml_writer import dump_yaml


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        ("5E3", 5000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("+7", 7),
        ("1_000", 1000),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("No", "No"),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("True", "True"),
        ("0123", "0123"),
        ("-0123", "-0123"),
        ("007.5", "007.5"),
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("1.2.3", "1.2.3"),
        ("1e", "1e"),
        ("=", "="),
        ("<<", "<<"),
        ("'0.5'", "0.5"),
        ('"true"', "true"),
        ("An image of {name}.", "An image of {name}."),
    ],
)
def test_a_value_is_read_as_a_person_means_it(written: str, meant: Any) -> None:
    value = parse_yaml(f"key: {written}\n").values["key"]
    assert value == meant
    assert type(value) is type(meant)
    assert parse_scalar(written, source="--set key") == meant


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_as_python_writes_it_is_that_float(number: float) -> None:
    assert parse_yaml(f"key: {number!r}").values["key"] == number


@given(st.integers(min_value=-(10**30), max_value=10**30))
def test_every_integer_is_that_integer(number: int) -> None:
    value = parse_yaml(f"key: {number}").values["key"]
    assert value == number
    assert isinstance(value, int)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(), JSON, max_size=4))
@example({"\x85": "a\u2028b\u2029c\ufeff", "k" * 300: " \n x\r\n\t"})
def test_what_the_writer_writes_the_reader_reads_back(values: dict[str, Any]) -> None:
    assert parse_yaml(dump_yaml(values)).values == values


@given(st.from_regex(r"[-+]?[0-9._]{0,4}([eE][-+]?[0-9]{1,3})?", fullmatch=True))
def test_text_that_looks_like_a_number_stays_text(text: str) -> None:
    assert parse_yaml(dump_yaml({"name": text})).values == {"name": text}


def test_a_literal_block_keeps_its_lines_and_is_never_a_number() -> None:
    document = parse_yaml("note: |\n  one\n  two\nnumber: |-\n  5\n")
    assert document.values == {"note": "one\ntwo\n", "number": "5"}


def test_an_empty_file_and_one_of_comments_hold_nothing() -> None:
    assert parse_yaml("").values is None
    assert parse_yaml("# nothing\n").values is None


def test_lines_are_those_on_which_the_keys_stand() -> None:
    text = "# title\nseed: 0\ntrain:\n\n  a1:\n    2.0\n  terms:\n    - one\nruns: {slow: {train.a1: 3}}\n"
    lines = parse_yaml(text).lines
    assert [lines[key] for key in ("seed", "train", "train.a1", "train.terms", "runs.slow.train.a1")] == [2, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: &x 1\nb: *x\n", 1, "anchors and aliases"),
        ("a: 1\nb: *x\n", 2, "anchors and aliases"),
        ("a: 1\nb: 2\na: 3\n", 3, "'a' stands here twice"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", 4, "'c' stands here twice"),
        ("a: 1\nb: !!python/object/apply:os.system [echo]\n", 2, "tag"),
        ("a: !secret x\n", 1, "tag"),
        ("a: !!str 5\n", 1, "tag"),
        ("a: 1\n? [x, y]\n: 2\n", 2, "plain word"),
        ("a: 1\nb: [1, 2\n", 3, ""),
        ("a: 1\n\tb: 2\n", 2, ""),
        ("a: 1\n--- \nb: 2\n", 2, ""),
        ("a: 1\nb: x: y\n", 2, "not allowed here"),
        ("a: 1\nb: \x00\n", 2, "not allowed"),
    ],
)
def test_what_could_hurt_or_be_misread_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int, reason: str
) -> None:
    path = tmp_path / "pogdiff.yaml"
    path.write_text(text)
    with pytest.raises(PogdiffError) as caught:
        read_yaml(path)
    assert caught.value.exit_code == Exit.USAGE
    assert caught.value.message.startswith(f"{path}:{line}: ")
    assert reason in caught.value.message
    assert caught.value.hint


def test_a_billion_laughs_are_refused_before_they_are_built() -> None:
    rows = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, after in zip("abcdefgh", "bcdefghi", strict=True):
        rows.append(f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]")
    with pytest.raises(PogdiffError, match="anchors and aliases"):
        parse_yaml("\n".join(rows))


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_twenty_thousand_brackets_are_refused_and_as_many_levels_as_allowed_are_not(opening: str, closing: str) -> None:
    with pytest.raises(PogdiffError, match="nested deeper"):
        parse_yaml(opening * 20_000 + closing * 20_000)
    value = parse_yaml(opening * MAX_DEPTH + closing * MAX_DEPTH).values
    depth = 0
    while isinstance(value, list | dict):
        value = next(iter(value.values() if isinstance(value, dict) else value), None)
        depth += 1
    assert depth == MAX_DEPTH


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "pogdiff.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert read_yaml(path).values == {"seed": 3}


def test_windows_line_ends_and_names_in_other_scripts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pogdiff.yaml"
    path.write_bytes("seed: 3\r\nname: Пётр 花子\r\n".encode())
    assert read_yaml(path).values == {"seed": 3, "name": "Пётр 花子"}


def test_what_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pogdiff.yaml"
    path.write_bytes(b"seed: 3\nname: Ren\xe9\n")
    with pytest.raises(PogdiffError, match=r"pogdiff\.yaml:2: not UTF-8"):
        read_yaml(path)


@pytest.mark.parametrize("kind", ["missing", "a folder", "too large"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pogdiff.yaml"
    if kind == "a folder":
        path.mkdir()
    elif kind == "too large":
        path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(PogdiffError, match=r"pogdiff\.yaml") as caught:
        read_yaml(path)
    assert caught.value.exit_code == Exit.USAGE


def test_the_names_of_very_many_identities_are_read_where_the_program_wrote_them(tmp_path: Path) -> None:
    names = {f"Person of a rather long name, number {i:06d}": f"Ada Müller {i} Lovelace" for i in range(70_000)}
    path = tmp_path / "names.yaml"
    path.write_text("".join(f"{identity}: {name}\n" for identity, name in names.items()), encoding="utf-8")
    assert path.stat().st_size > MAX_BYTES
    document = read_yaml(path, at_most=MAX_OWN_BYTES)
    assert document.values == names
    assert document.lines["Person of a rather long name, number 069999"] == 70_000
    with pytest.raises(PogdiffError, match="larger than"):
        read_yaml(path)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(), JSON, max_size=4))
@example({"\x85": "a\u2028b\u2029c\ufeff", "k" * 300: " \n x\r\n\t", "\U0001f600": ["'", '"', "\\"]})
def test_large_files_are_read_as_small_ones_are(values: dict[str, Any]) -> None:
    text = dump_yaml(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_reader, "_FAST_FROM", 0)
        fast = parse_yaml(text)
    slow = parse_yaml(text)
    assert fast.values == slow.values == values
    assert fast.lines == slow.lines


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("a: &x 1\n", "anchors and aliases"),
        ("a: *x\n", "anchors and aliases"),
        ("key 7: 1\n", "'key 7' stands here twice"),
        ("a: !!python/name:os.system x\n", "tag"),
        ("a: " + "[" * 40 + "]" * 40 + "\n", "nested deeper"),
        ("a: " + "[" * 20_000 + "\n", "nested deeper"),
        ("? [x]\n: 1\n", "plain word"),
        ("--- \nb: 2\n", "document"),
        ("\tb: 2\n", ""),
        ("a: \x00\n", "not allowed"),
    ],
)
def test_a_large_file_is_refused_for_what_a_small_one_is_and_at_the_same_line(damage: str, reason: str) -> None:
    text = "".join(f"key {i}: {i}\n" for i in range(8000)) + damage
    assert len(text) > yaml_reader._FAST_FROM
    with pytest.raises(PogdiffError, match=r":8001: ") as fast:
        parse_yaml(text)
    assert reason in fast.value.message
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_reader, "_FAST_FROM", len(text) + 1)
        with pytest.raises(PogdiffError) as slow:
            parse_yaml(text)
    assert slow.value.message == fast.value.message
