"""The report as text: pictures inside, no address outside, hostile names inert; its tables and sheets."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rated import human_scores

from pogdiff_cli.metrics.compare import compare
from pogdiff_cli.metrics.inputs import ExtractorInfo, FeatureSet, IdentityFeatures, ScoreSettings
from pogdiff_cli.metrics.scores import Scores
from pogdiff_cli.metrics.scoring import score
from pogdiff_cli.report.contact_sheet import Row, contact_sheet, write_contact_sheet
from pogdiff_cli.report.content import (
    EmbeddingMap,
    IdentityReport,
    LossPoint,
    Picture,
    ProvenanceRow,
    ReferenceTable,
    ReportData,
    RunReport,
)
from pogdiff_cli.report.curves import _flatten, embedding_map, loss_curves, smoothed
from pogdiff_cli.report.numbers import count, decimals, interval, number, p_value
from pogdiff_cli.report.page import render, render_html
from pogdiff_cli.report.pictures import side_for, thumbnailer
from pogdiff_cli.report.tables import (
    Table,
    identity_table,
    inert,
    scores_table,
    summary_table,
    to_csv,
    to_latex,
    to_markdown,
)

HOSTILE = (
    "<script>alert(1)</script>",
    "=cmd()|' /C calc'!A0",
    '"><img src=x onerror=alert(1)>',
    "$x^2$ \u4e2d\u6587",
)


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def png(shade: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (20, 24), shade if mode == "L" else (shade, 90, 120)).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def run_scores(run: str, seed: int) -> Scores:
    fixed, drawn = np.random.default_rng(9), np.random.default_rng(seed)
    identities = []
    for i, name in enumerate(HOSTILE):
        centre = fixed.standard_normal(6)
        sets = {kind: centre + 0.3 * fixed.standard_normal((n, 6)) for kind, n in (("train", 2), ("heldout", 8))}
        features = FeatureSet(**sets, fake=centre + 0.5 * drawn.standard_normal((7, 6)))
        identities.append(
            IdentityFeatures(
                identity=f"id{i}",
                name=name,
                shot="few" if i < 2 else "many",
                train_count=2,
                heldout_count=8,
                seeds=tuple(range(7)),
                features={"f": features},
            )
        )
    return score(
        identities,
        run=run,
        method=run,
        settings=ScoreSettings(extractor_of=dict.fromkeys(("fid", "prdc", "recall", "identity"), "f"), resamples=200),
        extractors={"f": ExtractorInfo(name="dlib", digest="sha256:feed", dim=6)},
    )


def report(**changes: object) -> ReportData:
    scores = {"vanilla": run_scores("vanilla", 1), HOSTILE[0]: run_scores(HOSTILE[0], 2)}
    runs = tuple(
        RunReport(
            name=name,
            method="vanilla",
            scores=found,
            losses=tuple(LossPoint(step=s, parts={"denoise": 1 / s, "neighbour": 0.1}) for s in (1, 5, 9)),
            settings={"train.a1": 1.0, "train.note": HOSTILE[2]},
            exposure={f"id{i}": 10 * i for i in range(4)},
            gallery={f"id{i}": tuple(Picture(source=png(40 + i), seed=s) for s in (3, 4)) for i in range(4)},
            human=human_scores(name, {f"id{i}": "few" if i < 2 else "many" for i in range(4)}, ("Ann", *HOSTILE)),
        )
        for name, found in scores.items()
    )
    identities = tuple(
        IdentityReport(
            identity=f"id{i}",
            name=name,
            shot="few" if i < 2 else "many",
            train_count=2 + i,
            training=(Picture(source=png(200)), Picture(source=b"not an image")),
            heldout=(Picture(source=png(90, "L")),),
            psi_inv=1.0 + i,
            log_density=-3.0 * i,
        )
        for i, name in enumerate(HOSTILE)
    )
    rng = np.random.default_rng(0)
    values: dict[str, object] = {
        "project": HOSTILE[0],
        "created": "1 May 2026",
        "runs": runs,
        "identities": identities,
        "comparisons": (compare(*scores.values()),),
        "maps": (
            EmbeddingMap(
                identity="id3",
                extractor="dlib",
                real=rng.standard_normal((5, 4)),
                generated={run.name: rng.standard_normal((6, 4)) for run in runs},
            ),
        ),
        "references": (ReferenceTable(title="Table 1", source="a paper", columns=("a", "b"), rows=(("x", "1"),)),),
        "provenance": (ProvenanceRow(artifact=HOSTILE[2], digest="sha256:abc", command=HOSTILE[0]),),
        "warnings": (HOSTILE[2],),
    }
    return ReportData(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def html() -> str:
    return render_html(report())


def test_hostile_names_stay_text(html: str) -> None:
    page = Page(html)
    assert not page.all("script")
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert all(name in page.text for name in HOSTILE)


def test_the_page_asks_nobody_for_anything(html: str) -> None:
    page = Page(html)
    addresses = [a[key] or "" for _, a in page.tags for key in ("src", "href", "action", "data") if key in a]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    style = "".join(re.findall(r"<style.*?</style>", html, flags=re.DOTALL))
    assert "@import" not in style
    assert not re.search(r"url\((?!#)", html)
    assert "http" not in re.sub(r"http-equiv|base64,[A-Za-z0-9+/=]+", "", html)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_picture_is_inside_decodes_and_is_described(html: str) -> None:
    page = Page(html)
    images = page.all("img")
    assert len(images) == 4 * (1 + 1 + 2 * 2)  # training, held out, two runs of two seeds; one cannot be read
    for image in images:
        source = image["src"] or ""
        assert source.startswith("data:image/jpeg;base64,")
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).load()
        assert image["alt"]
    unreadable = [a for a in page.all("span") if (a.get("aria-label") or "").endswith("unreadable")]
    assert len(unreadable) == 4


def test_tables_can_be_taken_along_and_stay_inert(html: str) -> None:
    files = {
        a["download"]: base64.b64decode((a["href"] or "").partition(",")[2]).decode()
        for a in Page(html).all("a")
        if "download" in a
    }
    assert set(files) == {"scores.csv", "identities.csv", "recall.csv", "scores.tex"}
    for name in ("scores.csv", "identities.csv", "recall.csv"):
        cells = [cell for row in csv.reader(io.StringIO(files[name])) for cell in row]
        assert cells == [inert(cell) for cell in cells]
    assert f"'{HOSTILE[1]}" in files["identities.csv"]
    assert files["scores.tex"].startswith(r"\begin{tabular}")


def test_the_page_says_what_stands_in_place_of_an_interval(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert "A group of fewer than 10 identities has none" in text
    assert "2 identities, 2 to 3 training images, scored on 7 generated images each" in text


def test_what_others_look_like_lies_behind_the_map() -> None:
    """A map of one real image, two generated ones and three of other people: six marks."""
    rng = np.random.default_rng(0)
    plain = EmbeddingMap(identity="a", extractor="e", real=rng.random((1, 4)), generated={"x": rng.random((2, 4))})
    behind = dataclasses.replace(plain, others=rng.random((3, 4)))
    marks = [embedding_map(data, "A", ["x"]).svg.count("<use ") for data in (plain, behind)]
    assert marks[1] == marks[0] + 3
    assert "real images of others" in embedding_map(behind, "A", ["x"]).caption
    assert "principal component 1" in embedding_map(behind, "A", ["x"]).svg


def test_positions_on_the_map_keep_distances_of_points_in_a_plane() -> None:
    """Unit vectors on a circle lie in a plane: two components lose nothing."""
    angle = np.linspace(0, 3, 9)
    rows = np.stack([np.cos(angle), np.sin(angle), np.zeros(9), np.zeros(9)], axis=1) * np.arange(1, 10)[:, None]
    names, flat = _flatten(rows)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    gaps = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (unit, flat)]
    assert gaps[1] == pytest.approx(gaps[0], abs=1e-12)
    assert len(names) == 2


def test_validation_losses_have_a_figure_a_group() -> None:
    points = tuple(LossPoint(step=s, parts={"denoise": 1.0, "validation, few": s / 10}) for s in (1, 2, 3))
    plots = loss_curves([RunReport(name="x", method="y", losses=points)])
    assert [plot.title for plot in plots] == ["Loss: denoise", "Loss: validation, few"]
    assert "not trained on" in plots[1].caption


def test_figures_are_described_and_take_the_colours_of_the_page(html: str) -> None:
    page = Page(html)
    figures = page.all("svg")
    assert len(figures) >= 10
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)
    assert "#0101" not in html
    assert "var(--run1)" in html


def test_ids_are_unique_so_that_no_figure_borrows_from_another(html: str) -> None:
    ids = [a["id"] for _, a in Page(html).tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_sections_come_in_the_order_of_the_argument(html: str) -> None:
    ids = [a["id"] for a in Page(html).all("section")]
    assert ids == ["verdict", "metrics", "images", "data", "training", "identities", "provenance"]


def test_the_same_seed_stands_in_one_column_for_every_run(html: str) -> None:
    generated = [a["alt"] or "" for a in Page(html).all("img") if "with seed" in (a["alt"] or "")]
    assert [alt.rpartition(" ")[2] for alt in generated[:4]] == ["3", "4", "3", "4"]


def test_few_identities_are_said_to_be_too_few(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert "The tail shows no clear change and the head shows no clear change." in text
    assert "2 identities, fewer than 10" in text
    assert "over seeds" in text


def test_a_metric_without_a_value_says_why() -> None:
    page = render_html(
        report(
            runs=(RunReport(name="x", method="y", scores=too_small()),),
            identities=(),
            maps=(),
            comparisons=(),
        )
    )
    assert "n/a" in page
    assert "1 images, fewer than k + 2 = 7" in page


def too_small() -> Scores:
    """Held-out sets of one image: no neighbourhoods."""
    rng = np.random.default_rng(0)
    one = IdentityFeatures(
        identity="id0",
        name="only",
        shot="few",
        train_count=2,
        heldout_count=1,
        seeds=(0, 1),
        features={"f": FeatureSet(train=rng.random((2, 3)), heldout=rng.random((1, 3)), fake=rng.random((2, 3)))},
    )
    settings = ScoreSettings(extractor_of={"prdc": "f", "fid": "f"})
    return score(
        [one],
        run="x",
        method="y",
        settings=settings,
        extractors={"f": ExtractorInfo(name="e", digest="d", dim=3)},
    )


def test_a_project_without_runs_still_has_a_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    render(ReportData(project="new", created="today", runs=(), identities=()), path)
    assert "No run has been evaluated yet" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_raters_stand_on_the_page_with_what_they_agree_on_and_who_was_left_out(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert "Raters: Is this the same person?" in text
    assert "4 raters; answers from 0 to 1. 1 rater left out for failing the attention checks. 1 file not" in text
    assert "0 of 1: failed" in text
    assert html.count('aria-label="Human ratings"') == 1  # both runs were rated on one page


def test_the_same_data_gives_the_same_page(html: str) -> None:
    assert render_html(report()) == html


def test_thumbnails_shrink_until_a_large_gallery_fits() -> None:
    assert side_for(10) > side_for(3000) >= 64
    assert 3000 * side_for(3000) ** 2 * 0.28 < 12_000_000


def test_transparent_pictures_are_laid_on_white_and_kept_upright() -> None:
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    thumbnail = thumbnailer(100)(Picture(source=buffer.getvalue()), "clear")
    assert thumbnail.uri is not None
    assert (thumbnail.width, thumbnail.height) == (4, 8)
    decoded = Image.open(io.BytesIO(base64.b64decode(thumbnail.uri.partition(",")[2])))
    assert decoded.convert("L").getpixel((2, 2)) == 255


def test_formulas_in_names_are_inert_in_csv_but_numbers_stay_numbers() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(identity_table([run_scores("-run", 1)])))))
    names = [row[2] for row in rows[1:]]
    assert names[1] == f"'{HOSTILE[1]}"
    assert rows[1][0] == "'-run"
    assert [inert(cell) for cell in ("-1.5", "+3", "@x", "\tx", "-x", "a=b")] == [
        "-1.5",
        "+3",
        "'@x",
        "'\tx",
        "'-x",
        "a=b",
    ]


def test_every_group_and_metric_has_its_row() -> None:
    scores = run_scores("vanilla", 1)
    table = scores_table([scores])
    assert len(table.rows) == sum(len(group.metrics) for group in scores.groups.values())
    assert all(len(row) == len(table.header) for row in table.rows)
    value = next(row for row in table.rows if row[2:5] == ("few", "2", "fid"))
    assert float(value[7]) == scores.groups["few"].metrics["fid"].value


def test_markdown_and_latex_keep_names_from_becoming_markup() -> None:
    table = Table(header=("a", "b"), rows=(("x|y<b>", "50 % of $3_a"),))
    assert to_markdown(table).splitlines()[2] == "| x\\|y&lt;b&gt; | 50 % of $3_a |"
    assert r"50 \% of \$3\_a" in to_latex(table)


def test_the_summary_puts_runs_side_by_side() -> None:
    table = summary_table([run_scores("one", 1), run_scores("two", 2)])
    assert table.header == ("group", "metric", "one", "two")
    assert table.rows[0][0] == "few"
    assert any("seeds +/-" in row[2] for row in table.rows)


def test_a_contact_sheet_has_a_row_an_identity_and_a_column_a_seed(tmp_path: Path) -> None:
    rows = [
        Row(label="a", pictures=(Picture(source=png(10), seed=5), Picture(source=png(250), seed=2))),
        Row(label="b" * 99, pictures=(Picture(source=png(250), seed=5),)),
    ]
    sheet = contact_sheet(rows, columns=4, cell=48)
    reds = [
        [sheet.getpixel((sheet.width - 16 - 24 - 54 * (1 - column), 16 + 20 + 24 + 54 * row)) for column in (0, 1)]
        for row in (0, 1)
    ]
    assert reds[0] == [(250, 90, 120), (10, 90, 120)]
    assert reds[1] == [(236, 238, 240), (250, 90, 120)]
    write_contact_sheet(rows, tmp_path / "sheet.png", columns=4, cell=48)
    with Image.open(tmp_path / "sheet.png") as written:
        assert written.size == sheet.size


def test_numbers_read_as_a_person_would_write_them() -> None:
    assert number(-0.004, 2) == "0.00"
    assert number(-1.5, 2, signed="+") == "\u22121.50"
    assert number(None, 2) == "n/a"
    assert interval(0.1, 0.25, 2) == "0.10 to 0.25"
    assert interval(None, 0.2, 2) is None
    assert (decimals([250.0]), decimals([3.0, None]), decimals([0.02]), decimals([])) == (1, 2, 3, 2)
    assert (p_value(0.0001), p_value(0.25), p_value(None)) == ("p < 0.001", "p = 0.250", "")
    assert (count(1, "image"), count(2, "image"), count(3, "identity", "identities")) == (
        "1 image",
        "2 images",
        "3 identities",
    )


def test_smoothing_keeps_a_straight_line_straight() -> None:
    line = np.linspace(0.0, 1.0, 300)
    assert smoothed(line)[10:-10] == pytest.approx(line[10:-10])
    assert smoothed(line[:5]) == pytest.approx(line[:5])
