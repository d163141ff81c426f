"""Human ratings: a page that gives nothing away, answers read with suspicion, scores that follow from them."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TinyProject
from PIL import Image
from rated import IDENTITIES, RUNS, attentive, export, key_of, page_of, with_samples, write_samples

from pogdiff_cli.data.rating_answers import COLUMNS, BadExport, rater_name, read_export, read_exports
from pogdiff_cli.engine.devices import select
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.compare import compare
from pogdiff_cli.metrics.ratings import RatedItem, rate_run, read_human, weigh_rater
from pogdiff_cli.metrics.scores import read_scores
from pogdiff_cli.project.layout import open_project
from pogdiff_cli.project.loading import parse_assignments
from pogdiff_cli.report.content import Picture
from pogdiff_cli.report.rating_page import Choice, Question, RatingItem, encode, rating_page
from pogdiff_cli.stages import evaluate
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.rate_merge import merge


@pytest.fixture
def rated(project: TinyProject) -> TinyProject:
    """Three runs with samples, and the page about them."""
    prepared = with_samples(project)
    said = prepared("rate")
    assert said.status == 0, said.err
    return prepared


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    assert found is not None
    body: dict[str, Any] = json.loads(found[1])
    return body


def html_of(project: TinyProject) -> str:
    return (project.root / "rating.html").read_text(encoding="utf-8")


def context_of(project: TinyProject) -> Context:
    opened = open_project(project.root, parse_assignments(project.settings))
    return Context(project=opened, devices=select("none"), command="test")


def human_of(project: TinyProject, run: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((project.root / "runs" / run / "evaluation" / "human.json").read_text())
    return body


def saved(project: TinyProject, folder: Path, *bodies: object) -> Path:
    folder.mkdir(exist_ok=True)
    for number, body in enumerate(bodies):
        (folder / f"{number}.json").write_text(json.dumps(body))
    return folder


# ---- the page -------------------------------------------------------------------------------------------------


def test_nothing_on_the_page_tells_whose_picture_is_shown(rated: TinyProject) -> None:
    html = html_of(rated)
    body = data_of(html)
    assert len(body["items"]) == len(key_of(rated)) == 3 * 4 * 2 + 2 + 6
    assert set(body) == {"schema", "question", "choices", "items", "page", "images"}
    assert all(set(item) == {"id", "references", "image"} for item in body["items"])
    text = re.sub(r'"images":\[[^\]]*\]', "", html)  # base64 holds any short word by chance
    for name in (*RUNS, *IDENTITIES, "pogdiff", "generic 0", "alert(1)", "cmd()", "Hopper", "Johnson", "medium"):
        assert name.lower() not in text.lower(), name
    for place in (str(rated.root), rated.root.name + "/", "runs/", "samples", ".png", "vanilla"):
        assert place not in text, place


def test_ids_and_order_say_nothing_without_the_secret(rated: TinyProject) -> None:
    ids = [item["id"] for item in data_of(html_of(rated))["items"]]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    secret = rated.root / "artifacts/rating/rating_key.json"
    body = json.loads(secret.read_text())
    secret.write_text(json.dumps({**body, "secret": "00" * 32}))
    assert rated("rate").status == 0
    others = [item["id"] for item in data_of(html_of(rated))["items"]]
    assert not set(ids) & set(others)


def test_rare_and_frequent_identities_have_as_many_references(rated: TinyProject) -> None:
    assert {len(item["references"]) for item in data_of(html_of(rated))["items"]} == {2}
    assert rated("rate", "--set", "rate.references=6").status == 0
    assert {len(item["references"]) for item in data_of(html_of(rated))["items"]} == {2}  # the rarest has two


def test_the_page_asks_nobody_for_anything_and_runs_its_own_script_alone(rated: TinyProject) -> None:
    html = html_of(rated)

    class Tags(HTMLParser):
        found: list[tuple[str, dict[str, str | None]]]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.append((tag, dict(attrs)))

    parser = Tags()
    parser.found = []
    parser.feed(html)
    names = [tag for tag, _ in parser.found]
    assert (names.count("script"), names.count("link"), names.count("iframe")) == (2, 0, 0)
    assert not [a for _, attributes in parser.found for a in attributes if a.startswith("on") or a in ("src", "href")]
    policy = next(str(a["content"]) for _, a in parser.found if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules["script-src"])
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules["style-src"])
    assert "connect-src" not in rules  # default-src speaks for it
    assert "http:" not in html
    assert "https:" not in html


def test_the_same_pictures_give_the_same_page_and_other_pictures_another_whose_key_is_added(rated: TinyProject) -> None:
    before, page = html_of(rated), page_of(rated)
    folder = rated.root / "artifacts/rating"
    assert rated("rate").status == 0
    assert html_of(rated) == before
    assert [path.name for path in folder.iterdir()] == ["rating_key.json"]
    write_samples(rated.root, "vanilla", IDENTITIES, seeds=2, seed=99)
    assert rated("rate").status == 0
    assert page_of(rated) != page
    assert sorted(path.name for path in folder.iterdir()) == [f"rating_key-{page[:12]}.json", "rating_key.json"]


def test_runs_share_seeds_and_identities_so_that_they_can_be_paired(project: TinyProject) -> None:
    prepared = with_samples(project)
    folder = prepared.root / "runs/vanilla/samples"
    index = json.loads((folder / "samples.json").read_text())
    index[0]["images"] = index[0]["images"][1:]  # seed 0 of the first identity
    (folder / "samples.json").write_text(json.dumps(index[:3]))  # and nothing of the last
    said = prepared("rate", "--set", "rate.repeats=0", "--set", "rate.attention_checks=0")
    assert said.status == 0
    assert "1 identities without images in every run are left out" in said.err
    counts: dict[tuple[object, object], int] = {}
    for entry in key_of(prepared).values():
        place = (entry["run"], entry["identity"])
        counts[place] = counts.get(place, 0) + 1
    first, *others = list(IDENTITIES)[:3]
    assert counts == {(run, first): 1 for run in RUNS} | {(run, name): 2 for run in RUNS for name in others}


def test_runs_groups_and_numbers_are_as_asked_for(project: TinyProject) -> None:
    prepared = with_samples(project)
    settings = ["rate.groups=[few]", "rate.identities_per_group=1", "rate.images_per_identity=1"]
    settings += ["rate.repeats=1", "rate.attention_checks=3"]
    said = prepared("rate", "--runs", "vanilla,pogdiff", *(word for s in settings for word in ("--set", s)), "--json")
    assert said.status == 0, said.err
    facts = json.loads(said.out)["stages"][0]["facts"]
    assert (facts["identities"], facts["items"], facts["repeats"], facts["checks"]) == (1, 2 + 2 + 3, 2, 3)
    assert {entry["shot"] for entry in key_of(prepared).values() if entry["kind"] == "image"} == {"few"}
    assert {entry["run"] for entry in key_of(prepared).values() if entry["kind"] == "image"} == {"vanilla", "pogdiff"}


def test_checks_show_a_reference_again_or_nothing_at_all(rated: TinyProject) -> None:
    items = {item["id"]: item for item in data_of(html_of(rated))["items"]}
    checks = {name: entry for name, entry in key_of(rated).items() if entry["kind"] == "check"}
    identical = {name for name in checks if items[name]["image"] in items[name]["references"]}
    assert {name for name, entry in checks.items() if entry["accept"] == [1]} == identical
    assert {name for name, entry in checks.items() if entry["accept"] == [0]} == set(checks) - identical
    assert len(identical) == 3


def test_a_page_beyond_its_limit_is_refused_with_what_to_lower(project: TinyProject) -> None:
    large = {"one": 2, "two": 2}
    prepared = with_samples(project, identities=large, runs=("vanilla",), seeds=1)
    draw = np.random.default_rng(0)
    for path in (prepared.root / "runs/vanilla/samples").glob("*/*.png"):
        Image.fromarray(draw.integers(0, 256, size=(1024, 1024, 3), dtype=np.uint8)).save(path)
    said = prepared("rate", "--set", "rate.image_side=1024", "--set", "rate.max_megabytes=1")
    assert said.status == Exit.USAGE
    assert "MB of pictures; the limit is 1 MB" in said.err
    assert "rate.images_per_identity" in said.err
    assert not (prepared.root / "rating.html").exists()
    assert prepared("rate", "--set", "rate.max_megabytes=1").status == 0  # 256 pixels a side fit


def test_pictures_are_small_and_carry_no_words_of_their_files(tmp_path: Path) -> None:
    path = tmp_path / "secret name.jpg"
    exif = Image.Exif()
    exif[0x010E] = "vanilla, Grace Hopper"
    Image.new("RGB", (900, 600), (10, 200, 30)).save(path, comment=b"vanilla, Grace Hopper", exif=exif)
    data = encode(Picture(source=path), 256)
    assert b"Grace" not in data
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (256, 171)
    with pytest.raises(PogdiffError, match="cannot be decoded"):
        encode(Picture(source=b"no picture"), 256)


def test_words_of_the_user_stay_text_on_the_page() -> None:
    hostile = "</script><script>alert(1)</script>"
    question = Question(
        text=hostile, subject=hostile, choices=(Choice(value=1, label=hostile), Choice(value=0, label="No"))
    )
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    picture = Picture(source=buffer.getvalue())
    items = [RatingItem(id="a" * 20, references=(picture,), picture=picture)]
    html = rating_page(question, items, total=1, side=64, limit=10**6).html
    assert html.count("<script") == 2
    assert "alert(1)</script>" not in html
    assert data_of(html)["question"] == hostile


def test_a_scale_of_likeness_is_asked_where_the_protocol_says_so(rated: TinyProject) -> None:
    said = rated("rate", "--set", "rate.protocol=similarity", "--set", "rate.subject=tabby <cat>")
    assert said.status == 0
    html = html_of(rated)
    assert [choice["value"] for choice in data_of(html)["choices"]] == [1, 2, 3, 4, 5]
    assert "this tabby &lt;cat&gt;?" in html
    accepted = {tuple(e["accept"]) for e in key_of(rated).values() if e["kind"] == "check"}  # type: ignore[arg-type]
    assert accepted == {(1, 2), (4, 5)}


@pytest.mark.parametrize("arguments", [("--merge",), ("a.json",), ("--merge", "a.json", "--runs", "x"), ("--key", "k")])
def test_a_page_is_written_or_answers_are_merged_never_both(project: TinyProject, arguments: tuple[str, ...]) -> None:
    said = project("rate", *arguments)
    assert said.status == Exit.USAGE
    assert "--merge FILES" in said.err


def test_without_samples_or_without_a_page_the_command_that_comes_first_is_named(project: TinyProject) -> None:
    said = project("rate")
    assert (said.status, "pogdiff sample" in said.err) == (Exit.MISSING, True)
    said = project("rate", "--runs", "vanilla")
    assert (said.status, "pogdiff sample --run vanilla" in said.err) == (Exit.MISSING, True)
    said = project("rate", "--merge", project.root)
    assert (said.status, "Run 'pogdiff rate' first" in said.err) == (Exit.MISSING, True)


# ---- answers --------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(BadExport) as caught:
        read_export(path)
    return str(caught.value)


GOOD: dict[str, Any] = {"schema": "ratings/1", "page": "p", "rater": "Ann", "answers": []}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not an export"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "damaged JSON"),
        (b"[" * 100_000, "damaged JSON"),
        (b"[]", "not an export"),
        (b'{"schema": "ratings/2"}', "not an export"),
        (json.dumps({**GOOD, "answers": {}}).encode(), "no list"),
        (json.dumps({**GOOD, "answers": [0] * 100_001}).encode(), "more than 100000"),
        (json.dumps({**GOOD, "page": 3}).encode(), "names no page"),
        (json.dumps({**GOOD, "page": "x" * 200}).encode(), "names no page"),
        (json.dumps({**GOOD, "rater": ["Ann"]}).encode(), "no text"),
        (json.dumps({**GOOD, "rater": "x" * 81}).encode(), "more than 80"),
        (json.dumps({**GOOD, "rater": " "}).encode(), "no or more"),
        (json.dumps({**GOOD, "rater": "Ann\x1b[2J"}).encode(), "control characters"),
        (json.dumps({**GOOD, "rater": "A\u202enn"}).encode(), "control characters"),
        (b"a,b\r\n1,2\r\n", "not an export"),
        (b'page,rater,exported,id,value,seconds\r\n"p', "damaged CSV"),
        (b"page,rater,exported,id,value,seconds\r\n", "no answers"),
        (b"page,rater,exported,id,value,seconds\r\np,A,,x,1,1\r\np,B,,x,1,1\r\n", "mixes raters"),
    ],
)
def test_a_file_that_is_no_export_is_refused_with_the_reason(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    assert why in refusal(path)


def test_neither_size_nor_kind_of_a_file_can_stop_the_merge(tmp_path: Path) -> None:
    import os

    large, pipe, good = tmp_path / "large.json", tmp_path / "pipe.json", tmp_path / "z.json"
    with large.open("wb") as file:
        file.truncate(9 * 1024**2)
    os.mkfifo(pipe)
    good.write_text(json.dumps(GOOD))
    found = read_exports(sorted(tmp_path.iterdir()))
    assert [export.source for export in found.read] == ["z.json"]
    assert found.refused == {"large.json": "more than 8 MiB", "pipe.json": "not a regular file"}


def test_entries_that_are_no_answers_are_counted_and_the_last_answer_to_an_item_holds(tmp_path: Path) -> None:
    entries = [
        *({"id": "a", "value": value} for value in (0, 1)),
        *({"id": "b", "value": value} for value in (True, "1", 1.0, None, float("nan"), [1])),
        *({"id": item, "value": 1} for item in (7, "", "x" * 65, None)),
        None,
        "a",
        {},
        {"id": "c", "value": 10**30},
    ]
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({**GOOD, "answers": entries}))
    found = read_export(path)
    assert found.answers == {"a": 1, "c": 10**30}
    assert (found.repeated, found.malformed) == (1, 13)


def test_csv_says_the_same_as_json_and_formulas_in_names_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows([["p", "'=cmd()", "2026", item, value, "1.5"] for item, value in (("a", 1), ("b", 0), ("c", "x"))])
    writer.writerow(["short"])
    path.write_text(buffer.getvalue())
    found = read_export(path)
    assert (found.rater, found.page, found.answers, found.malformed) == ("=cmd()", "p", {"a": 1, "b": 0}, 2)


def test_names_are_told_apart_as_people_tell_them_apart() -> None:
    assert rater_name("  Ann\t B ") == "Ann B"
    assert rater_name("e\u0301") == "\u00e9"


# ---- scores ---------------------------------------------------------------------------------------------------


def image(run: str, identity: str, shot: str = "few") -> RatedItem:
    return RatedItem(kind="image", run=run, identity=identity, shot=shot)


def test_raters_are_averaged_per_image_and_images_per_identity() -> None:
    items = {"1": image("a", "x"), "2": image("a", "x"), "3": image("a", "y", "many"), "4": image("b", "x")}
    answers = [{"1": 1, "2": 1, "3": 0}, {"1": 0, "3": 0}, {"1": 0, "4": 1}]
    groups, means = rate_run("a", items, answers, categories=(0, 1), seed=0, resamples=100)
    assert means == {"x": pytest.approx((1 / 3 + 1) / 2), "y": 0.0}
    assert groups["all"].interval.value == pytest.approx((1 / 3 + 1) / 4)
    assert groups["few"].interval.value == pytest.approx(2 / 3)
    assert "medium" not in groups
    assert (groups["all"].items, groups["all"].ratings, groups["all"].raters) == (3, 6, 3)
    # pairs of item 1: none of three agrees but (0, 0); item 3: one pair, equal; item 2 has one rating
    assert groups["all"].percent_agreement.value == pytest.approx((1 / 3 + 1) / 2)
    assert groups["all"].fleiss_kappa.items == 1  # all three rated the first image alone
    assert groups["many"].fleiss_kappa.reason == "all ratings are equal"
    assert groups["all"].interval.reason is not None  # two identities leave no interval


def test_with_enough_identities_there_is_an_interval_around_the_mean() -> None:
    draw = np.random.default_rng(0)
    items = {str(i): image("a", f"identity {i // 2}") for i in range(40)}
    answers = [{key: int(draw.random() < 0.6) for key in items} for _ in range(3)]
    groups, _ = rate_run("a", items, answers, categories=(0, 1), seed=0, resamples=500)
    interval = groups["few"].interval
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < np.mean([value for given in answers for value in given.values()]) < interval.high


def test_nobody_who_is_counted_leaves_numbers_undefined_and_says_so() -> None:
    groups, means = rate_run("a", {"1": image("a", "x")}, [], categories=(0, 1), seed=0, resamples=100)
    assert means == {}
    assert groups["all"].interval.value is None
    assert groups["all"].percent_agreement.reason == "no item has two ratings"
    assert groups["all"].fleiss_kappa.value is None


CHECKS = {f"c{i}": RatedItem(kind="check", accept=(i % 2,)) for i in range(5)}


@pytest.mark.parametrize(
    ("right", "failed", "passed", "included"),
    [(5, "exclude", True, True), (4, "exclude", True, True), (3, "exclude", False, False), (3, "keep", False, True)],
)
def test_a_rater_who_fails_checks_is_told_apart_and_left_out_only_when_asked(
    right: int, failed: Any, passed: bool, included: bool
) -> None:
    answers = {f"c{i}": i % 2 if i < right else 1 - i % 2 for i in range(5)}
    rater, _ = weigh_rater(
        answers, CHECKS, categories=(0, 1), pass_at=0.8, failed=failed, rater="A", source="a", malformed=0, repeated=0
    )
    assert (rater.checks_passed, rater.passed, rater.included) == (right, passed, included)


def test_repeats_measure_the_rater_and_unknown_things_are_counted() -> None:
    items = {"1": image("a", "x"), "2": image("a", "y"), "r1": RatedItem(kind="repeat", of="1"), **CHECKS}
    items["r2"] = RatedItem(kind="repeat", of="2")
    answers = {"1": 1, "r1": 1, "2": 0, "r2": 1, "nobody": 1, "c0": 9}
    rater, usable = weigh_rater(
        answers, items, categories=(0, 1), pass_at=0.8, failed="exclude", rater="A", source="a", malformed=0, repeated=0
    )
    assert (rater.answered, rater.repeats, rater.repeats_equal) == (2, 2, 1)
    assert (rater.unknown_items, rater.unknown_values) == (1, 1)
    assert (rater.checks, rater.passed, rater.included) == (0, None, True)
    assert set(usable) == {"1", "2", "r1", "r2"}


def test_merging_unblinds_every_run_and_counts_what_it_leaves_out(rated: TinyProject, tmp_path: Path) -> None:
    key = key_of(rated)
    like = {"vanilla": 0, "pogdiff": 1, "balanced-run": 1}
    ann = attentive(key, lambda entry: like[str(entry["run"])])
    bob = attentive(key, lambda entry: int(entry["shot"] == "few"))
    careless = dict.fromkeys(key, 1)
    folder = saved(
        rated,
        tmp_path / "answers",
        export(rated, "Ann", dict.fromkeys(key, 0), exported="2025"),
        export(rated, "ANN ", {**ann, "nothing": 1}, exported="2026"),
        export(rated, "Bob", bob),
        export(rated, "Lazy", careless),
        export(rated, "Old", ann, page="0" * 64),
    )
    (folder / "notes.csv").write_text("a,b\n")
    said = rated("rate", "--merge", folder, "--json")
    assert said.status == 0, said.err
    body = json.loads(said.out)["runs"]
    raters = {rater["rater"]: rater for rater in body["vanilla"]["raters"]}
    assert set(raters) == {"ANN", "Bob", "Lazy"}
    assert raters["ANN"]["unknown_items"] == 1
    assert (raters["Lazy"]["passed"], raters["Lazy"]["included"]) == (False, True)
    assert body["vanilla"]["superseded"] == ["0.json"]
    assert body["vanilla"]["refused"] == {"4.json": "answers to another page", "notes.csv": "not an export of answers"}
    # few: Ann says by run, Bob and Lazy yes; many and medium: Bob says no
    assert body["vanilla"]["groups"]["few"]["interval"]["value"] == pytest.approx(2 / 3)
    assert body["pogdiff"]["groups"]["few"]["interval"]["value"] == pytest.approx(1)
    assert body["pogdiff"]["groups"]["many"]["interval"]["value"] == pytest.approx(2 / 3)
    assert body["pogdiff"]["groups"]["few"]["fleiss_kappa"] == {
        "value": None,
        "items": 4,
        "ratings": 12,
        "reason": "all ratings are equal",
    }
    assert human_of(rated, "pogdiff") == body["pogdiff"]
    manifest = yaml.safe_load((rated.root / "manifest.yaml").read_text())
    record = manifest["runs"]["vanilla"]["rate"]
    assert (record["state"], record["facts"]["raters"], record["facts"]["failed_checks"]) == ("done", 3, 1)
    assert set(record["outputs"]) == {f"runs/vanilla/evaluation/human.{ending}" for ending in ("json", "csv")}

    said = rated("rate", "--merge", folder, "--set", "rate.failed_raters=exclude", "--json")
    body = json.loads(said.out)["runs"]
    assert body["vanilla"]["groups"]["few"]["interval"]["value"] == pytest.approx(1 / 2)
    assert [r["included"] for r in body["vanilla"]["raters"] if r["rater"] == "Lazy"] == [False]


def test_merging_shows_raters_means_and_why_a_number_is_missing(rated: TinyProject, tmp_path: Path) -> None:
    key = key_of(rated)
    answers = attentive(key, lambda _: 1)
    folder = saved(rated, tmp_path / "answers", export(rated, "Ann", answers), export(rated, "[red]Bob", answers))
    (folder / "x.json").write_text("{")
    said = rated("rate", "--merge", *sorted(folder.iterdir()))
    assert said.status == 0, said.err
    assert "[red]Bob" in said.out
    assert "6/6" in said.out
    assert "x.json is not counted: damaged JSON" in said.err
    assert "vanilla, few: all ratings are equal." in said.err.splitlines()
    again = rated("rate", "--merge", folder, "--json")
    assert {stage["state"] for stage in json.loads(again.out)["stages"]} == {"up to date"}


def test_names_like_formulas_are_inert_in_the_table_of_ratings(rated: TinyProject, tmp_path: Path) -> None:
    answers = attentive(key_of(rated), lambda _: 1)
    merge(context_of(rated), [saved(rated, tmp_path / "answers", export(rated, "Ann", answers))])
    with (rated.root / "runs/vanilla/evaluation/human.csv").open(newline="") as file:
        names = {row[1] for row in csv.reader(file)}
    assert {"'=cmd()|'calc'", "<script>alert(1)"} <= names


def test_without_one_usable_file_nothing_is_written(rated: TinyProject, tmp_path: Path) -> None:
    folder = saved(rated, tmp_path / "answers", export(rated, "Ann", {}, page="0" * 64))
    said = rated("rate", "--merge", folder)
    assert said.status == Exit.DATA
    assert "0.json: answers to another page" in said.err
    assert not (rated.root / "runs/vanilla/evaluation").exists()
    (folder / "0.json").unlink()
    assert rated("rate", "--merge", folder).status == Exit.USAGE
    assert rated("rate", "--merge", folder / "nothing.json").status == Exit.USAGE


def test_answers_to_an_earlier_page_are_merged_with_its_key(rated: TinyProject, tmp_path: Path) -> None:
    early, answers = page_of(rated), attentive(key_of(rated), lambda _: 1)
    folder = saved(rated, tmp_path / "answers", export(rated, "Ann", answers))
    assert rated("rate", "--set", "rate.images_per_identity=1").status == 0
    said = rated("rate", "--merge", folder)
    name = f"artifacts/rating/rating_key-{early[:12]}.json"
    assert (said.status, name in said.err) == (Exit.DATA, True)
    assert rated("rate", "--merge", folder, "--key", rated.root / name).status == 0
    assert human_of(rated, "vanilla")["page"] == early


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": "pogdiff.rating_key/1"}', '{"schema": "else"}'])
def test_a_damaged_key_is_said_to_be_one(rated: TinyProject, tmp_path: Path, damage: str) -> None:
    folder = saved(rated, tmp_path / "answers", export(rated, "Ann", {}))
    (rated.root / "artifacts/rating/rating_key.json").write_text(damage)
    said = rated("rate", "--merge", folder)
    assert (said.status, "is no key of a rating page" in said.err) == (Exit.MISSING, True)


def test_a_key_in_which_one_character_has_changed_unblinds_nothing(rated: TinyProject, tmp_path: Path) -> None:
    folder = saved(rated, tmp_path / "answers", export(rated, "Ann", {}))
    key = rated.root / "artifacts/rating/rating_key.json"
    key.write_text(key.read_text().replace("vanilla", "vanillb", 1))
    said = rated("rate", "--merge", folder)
    assert (said.status, "is not the key that 'pogdiff rate' wrote" in said.err) == (Exit.MISSING, True)


# ---- the metric -----------------------------------------------------------------------------------------------


def scored(project: TinyProject, *runs: str) -> list[Any]:
    context = context_of(project.configure("evaluate.metrics=[human]"))
    for run in runs:
        evaluate.run(context, context.project.run(run))
    return [read_scores(project.root / "runs" / run / "evaluation/scores.json") for run in runs]


def test_ratings_become_a_metric_that_is_compared_in_pairs(rated: TinyProject, tmp_path: Path) -> None:
    key = key_of(rated)
    unrated = scored(rated, "vanilla")[0]
    assert unrated.groups["few"].metrics["human"].value is None
    assert unrated.groups["few"].metrics["human"].reason == "not rated"
    answers = attentive(key, lambda entry: int(entry["run"] == "pogdiff" or entry["shot"] == "many"))
    merge(context_of(rated), [saved(rated, tmp_path / "answers", export(rated, "Ann", answers))])
    vanilla, better = scored(rated, "vanilla", "pogdiff")
    assert vanilla.groups["few"].metrics["human"].value == 0
    assert vanilla.groups["many"].metrics["human"].value == 1
    assert vanilla.settings["human"] == {"page": page_of(rated), "protocol": "same", "raters": 1}
    comparison = compare(vanilla, better, resamples=100)
    (difference,) = comparison.group("few").differences  # type: ignore[union-attr]
    assert (difference.metric, difference.decides, difference.improvement) == ("human", True, 1.0)
    assert difference.per_identity == {"Grace Hopper": 1.0, "Katherine Johnson": 1.0}


def test_ratings_of_other_images_are_not_counted(rated: TinyProject, tmp_path: Path) -> None:
    answers = attentive(key_of(rated), lambda _: 1)
    folder = saved(rated, tmp_path / "answers", export(rated, "Ann", answers))
    assert rated("rate", "--merge", folder).status == 0
    write_samples(rated.root, "vanilla", IDENTITIES, seeds=2, seed=99)
    said = rated("rate", "--merge", folder)
    assert "vanilla: the samples have changed since they were rated" in said.err
    vanilla, other = scored(rated, "vanilla", "pogdiff")
    assert vanilla.groups["all"].metrics["human"].value is None
    assert other.groups["all"].metrics["human"].value == 1


def test_runs_rated_on_different_pages_are_not_compared_by_ratings(rated: TinyProject, tmp_path: Path) -> None:
    for run in ("vanilla", "pogdiff"):
        assert rated("rate", "--runs", run).status == 0
        answers = attentive(key_of(rated), lambda _: 1)
        merge(context_of(rated), [saved(rated, tmp_path / run, export(rated, "Ann", answers))])
    comparison = compare(*scored(rated, "vanilla", "pogdiff"), resamples=100)
    assert comparison.group("all").differences == ()  # type: ignore[union-attr]
    assert any("different pages" in caution for caution in comparison.cautions)


def test_an_evaluation_is_stale_once_people_have_rated(rated: TinyProject, tmp_path: Path) -> None:
    context = context_of(rated.configure("evaluate.metrics=[human]"))
    run = context.project.run("vanilla")
    assert evaluate.run(context, run).state == "done"
    assert evaluate.run(context, run).state == "up to date"
    answers = attentive(key_of(rated), lambda _: 1)
    merge(context, [saved(rated, tmp_path / "answers", export(rated, "Ann", answers))])
    again = evaluate.run(context, run)
    assert (again.state, again.reasons) == ("done", ("human changed (runs/vanilla/evaluation/human.json)",))


def test_damaged_ratings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "human.json"
    assert read_human(path) is None
    for text in ("{", "[]", '{"schema": "pogdiff.human/1"}', '{"schema": "other"}'):
        path.write_text(text)
        with pytest.raises(PogdiffError, match="holds no ratings"):
            read_human(path)
