"""Three raters at the real page in a real browser: what they press is what the merged scores say."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyProject
from devtools import Browser, Page, running
from rated import IDENTITIES, RUNS, key_of, page_of, with_samples

FORMULA = '=cmd(),"calc"'
GUARD = 0.16  # seconds after which the page takes another answer: one tap is not two

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def rated(project: TinyProject) -> TinyProject:
    prepared = with_samples(project, runs=RUNS[:2]).configure("rate.images_per_identity=1", "rate.repeats=0.25")
    prepared = prepared.configure("rate.attention_checks=2")
    assert prepared("rate").status == 0
    return prepared


@pytest.fixture
def page(browser: Browser, rated: TinyProject, tmp_path: Path) -> Page:
    found = browser.page()
    found.size(1280, 800)
    found.open(rated.root / "rating.html")
    found.downloads_to(tmp_path / "answers")
    return found


def start(page: Page, name: str) -> None:
    page.until("!document.getElementById('start').hidden && document.activeElement.id === 'name'")
    page.type(name)
    page.key("Enter")
    page.until("!document.getElementById('task').hidden")


def item(page: Page) -> str:
    return str(page.js("document.getElementById('task').dataset.item"))


def answered(page: Page) -> int:
    return int(page.js("document.getElementById('bar').value"))


def press(page: Page, key: str) -> None:
    time.sleep(GUARD)
    page.key(key)


def play(page: Page, say: dict[str, int], stop: int | None = None) -> list[str]:
    """Answer by keys until the end, or so many times: 1 is yes and 2 is no. The items in the order they came."""
    order: list[str] = []
    while stop is None or len(order) < stop:
        if page.js("document.getElementById('task').hidden"):
            break
        order.append(item(page))
        press(page, "1" if say[order[-1]] else "2")
    return order


def downloaded(page: Page, button: str, folder: Path, name: str) -> Path:
    page.tap(button)
    path, end = folder / name, time.monotonic() + 30
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < end, sorted(folder.iterdir()) if folder.exists() else "nothing came"
        time.sleep(0.02)
    return path


def plan(rated: TinyProject, rater: int) -> dict[str, int]:
    """What one rater will say: the truth of checks, an opinion of pictures, the same of a repeat but for the third."""
    key = key_of(rated)
    images = sorted(name for name, entry in key.items() if entry["kind"] == "image")
    said = {name: int((number * (rater + 2)) % 5 < 3) for number, name in enumerate(images)}
    for name, entry in key.items():
        if entry["kind"] == "check":
            said[name] = entry["accept"][0]  # type: ignore[index]
        if entry["kind"] == "repeat":
            said[name] = said[str(entry["of"])] if rater < 2 else 1 - said[str(entry["of"])]
    return said


def fleiss(rows: list[list[int]]) -> float:
    """Kappa from its definition, over items with the answers of all raters."""
    n, items = len(rows[0]), len(rows)
    counts = [[row.count(value) for value in (0, 1)] for row in rows]
    observed = Fraction(sum(c * (c - 1) for row in counts for c in row), n * (n - 1) * items)
    shares = [Fraction(sum(row[j] for row in counts), n * items) for j in (0, 1)]
    chance = sum(share * share for share in shares)
    return float((observed - chance) / (1 - chance))


def test_three_raters_play_and_the_merged_scores_say_what_they_pressed(
    page: Page, rated: TinyProject, tmp_path: Path
) -> None:
    key, folder = key_of(rated), tmp_path / "answers"
    plans = [plan(rated, rater) for rater in range(3)]
    orders = []
    for rater, name in enumerate(("Ann", FORMULA, "<script>alert(1)</script>")):
        start(page, name)
        before = play(page, plans[rater], stop=5)
        at = item(page)
        page.reload()
        page.until("!document.getElementById('task').hidden")  # the rater is known without typing again
        assert (answered(page), item(page)) == (5, at)
        orders.append(before + play(page, plans[rater]))
        slug = ("Ann", "cmd-calc", "script-alert-1-script")[rater]
        downloaded(page, "#json", folder, f"answers-{slug}.json")
        if rater == 1:
            table = downloaded(page, "#csv", folder, f"answers-{slug}.csv")
        page.tap("#leave")
    assert [sorted(order) for order in orders] == [sorted(key)] * 3
    assert len({tuple(order) for order in orders}) == 3
    assert page.complaints() == []
    assert page.js("document.title") == "Picture rating"

    # the table holds the same, and its formula is text
    rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))
    assert {row[1] for row in rows[1:]} == {f"'{FORMULA}"}
    assert {row[3]: int(row[4]) for row in rows[1:]} == plans[1]
    (folder / "answers-cmd-calc.json").unlink()

    said = rated("rate", "--merge", *sorted(folder.iterdir()), "--json")
    assert said.status == 0, said.err
    runs = json.loads(said.out)["runs"]
    raters = {rater["rater"]: rater for rater in runs["vanilla"]["raters"]}
    assert set(raters) == {"Ann", FORMULA, "<script>alert(1)</script>"}
    assert {(rater["checks_passed"], rater["checks"]) for rater in raters.values()} == {(2, 2)}
    assert [raters[name]["repeats_equal"] for name in ("Ann", "<script>alert(1)</script>")] == [2, 0]
    for run in RUNS[:2]:
        own = [name for name, entry in key.items() if entry["kind"] == "image" and entry["run"] == run]
        answers = [[said[name] for said in plans] for name in own]
        found = runs[run]["groups"]["all"]
        assert found["fleiss_kappa"]["value"] == pytest.approx(fleiss(answers), rel=1e-12)
        assert found["interval"]["value"] == pytest.approx(sum(map(sum, answers)) / (3 * len(own)))
        assert (found["raters"], found["items"], found["identities"]) == (3, len(own), len(IDENTITIES))


def test_the_order_belongs_to_the_rater_and_a_picture_is_kept_apart_from_itself(page: Page, rated: TinyProject) -> None:
    def walked(name: str) -> list[str]:
        start(page, name)
        while not page.js("document.getElementById('back').disabled"):
            page.key("ArrowLeft")
        order = [item(page)]
        while not page.js("document.getElementById('next').disabled"):
            page.key("ArrowRight")
            order.append(item(page))
        page.tap("#save")
        page.tap("#leave")
        return order

    first, again, other = walked("Ann B"), walked("  ann   b "), walked("Bob")
    assert sorted(first) == sorted(key_of(rated))
    assert first != other
    assert first == again
    shown = {
        entry["id"]: entry["image"]
        for entry in page.js("JSON.parse(document.getElementById('data').textContent).items")
    }
    for order in (first, other):
        assert all(shown[one] != shown[two] for one, two in pairwise(order))


def test_keys_answer_move_and_undo(page: Page) -> None:
    start(page, "Ann")
    first = item(page)
    press(page, "3")  # there is no third answer
    assert (item(page), answered(page)) == (first, 0)
    press(page, "1")
    second = item(page)
    assert second != first
    assert answered(page) == 1
    page.key("2")  # at once after the other: one tap is not two
    assert item(page) == second
    press(page, "2")
    page.key("ArrowLeft")
    assert item(page) == second
    assert page.js("[...document.querySelectorAll('#answers [aria-pressed=true]')].map((b) => b.dataset.value)") == [
        "0"
    ]
    press(page, "1")  # another opinion of the same picture
    assert answered(page) == 2
    page.key("u")
    assert (item(page), answered(page)) == (second, 1)
    page.key("Backspace")
    assert (item(page), answered(page)) == (first, 0)
    page.key("u")
    page.key("ArrowLeft")
    assert (item(page), answered(page)) == (first, 0)


def test_a_saved_file_goes_on_where_it_ended_on_another_device(
    page: Page, browser: Browser, rated: TinyProject, tmp_path: Path
) -> None:
    say = plan(rated, 0)
    start(page, "Ann")
    played = play(page, say, stop=4)
    waiting = item(page)
    page.tap("#save")
    path = downloaded(page, "#json", tmp_path / "answers", "answers-Ann.json")
    page.js("localStorage.clear(); sessionStorage.clear()")

    other = browser.page()
    other.open(rated.root / "rating.html")
    other.choose_file("#import", path)
    other.until("!document.getElementById('task').hidden")
    assert (answered(other), item(other)) == (4, waiting)
    assert sorted([*played, *play(other, say)]) == sorted(say)


def test_a_browser_that_keeps_nothing_says_so_and_answers_can_still_be_saved(
    browser: Browser, rated: TinyProject, tmp_path: Path
) -> None:
    page = browser.page()
    refuses = "{ get() { throw new DOMException('no'); } }"
    source = "".join(f"Object.defineProperty(window, '{name}Storage', {refuses});" for name in ("local", "session"))
    page.call("Page.addScriptToEvaluateOnNewDocument", source=source)
    page.downloads_to(tmp_path / "answers")
    page.open(rated.root / "rating.html")
    start(page, "Ann")
    assert "save a file before you close" in page.js("document.getElementById('unsaved').innerText")
    press(page, "1")
    page.tap("#save")
    path = downloaded(page, "#json", tmp_path / "answers", "answers-Ann.json")
    assert len(json.loads(path.read_text())["answers"]) == 1
    assert page.complaints() == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"page": "0" * 64}, "another version"),
        ({"schema": "x"}, "holds no answers"),
        ({"answers": {}}, "holds no answers"),
        ({"rater": ""}, "holds no answers"),
        (None, "holds no answers"),
    ],
)
def test_a_file_from_elsewhere_is_refused_on_the_page(
    page: Page, rated: TinyProject, tmp_path: Path, change: dict[str, Any] | None, why: str
) -> None:
    body = {"schema": "ratings/1", "page": page_of(rated), "rater": "Ann", "answers": []}
    path = tmp_path / "x.json"
    path.write_text("{" if change is None else json.dumps({**body, **change}))
    page.choose_file("#import", path)
    page.until("!document.getElementById('problem').hidden")
    assert why in page.js("document.getElementById('problem').textContent")
    assert page.js("document.getElementById('task').hidden")


def test_foreign_entries_of_a_saved_file_are_left_out(page: Page, rated: TinyProject, tmp_path: Path) -> None:
    known = next(iter(key_of(rated)))
    entries = [{"id": known, "value": 1}, {"id": known, "value": 7}, {"id": "__proto__", "value": 1}, None, 3]
    body = {"schema": "ratings/1", "page": page_of(rated), "rater": "<img src=x onerror=alert(1)>", "answers": entries}
    (tmp_path / "x.json").write_text(json.dumps(body))
    page.choose_file("#import", tmp_path / "x.json")
    page.until("!document.getElementById('task').hidden")
    assert answered(page) == 1
    page.tap("#save")
    assert "<img src=x" in page.js("document.getElementById('count').textContent")
    assert page.js("document.querySelectorAll('#end img').length") == 0
    assert page.complaints() == []


def test_the_pages_own_rules_stop_scripts_and_requests_that_are_not_its_own(page: Page) -> None:
    tried = page.js(
        "new Promise((done) => { const seen = []; addEventListener('securitypolicyviolation', (e) => {"
        " seen.push(e.effectiveDirective); if (seen.length === 3) done(seen.sort()); });"
        " const s = document.createElement('script'); s.textContent = 'window.ran = true'; document.body.append(s);"
        " fetch('http://127.0.0.1:9/').catch(() => {}); new Image().src = 'http://127.0.0.1:9/x.png';"
        " setTimeout(() => done(seen), 5000); })"
    )
    assert tried == ["connect-src", "img-src", "script-src-elem"]
    assert page.js("window.ran") is None


@pytest.mark.parametrize("protocol", ["same", "similarity"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 640), (1280, 800)])
def test_the_page_fits_a_phone_and_a_desk_with_targets_for_a_thumb_and_text_to_read(
    page: Page, rated: TinyProject, width: int, height: int, theme: str, protocol: str
) -> None:
    assert rated("rate", "--set", f"rate.protocol={protocol}").status == 0
    page.size(width, height, theme=theme)
    page.open(rated.root / "rating.html")
    page.js("sessionStorage.clear()")
    page.reload()
    measure(page, width, theme)
    start(page, f"{protocol} {theme} {width}")
    page.until("[...document.querySelectorAll('#task img')].every((i) => i.complete && i.naturalWidth)")
    measure(page, width, theme)
    # the question, both kinds of picture and the answers are seen at once
    assert page.js("document.documentElement.scrollHeight - innerHeight") <= 0
    page.tap("#save")
    measure(page, width, theme)


_MEASURE = """
(() => {
  const shown = [...document.querySelectorAll("main:not([hidden]) *")].filter((e) => e.getClientRects().length);
  const wide = shown.filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5);
  const small = shown.filter((e) => e.matches("button, .button, input[type=text]")
    && (e.getBoundingClientRect().height < 44 || e.getBoundingClientRect().width < 44));
  const light = (text) => { const [r, g, b] = text.match(/[0-9.]+/g).map((v) => (v / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)|transparent/.test(c)) return c; } return "rgb(255, 255, 255)"; };
  const contrast = (e) => { const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); };
  const texts = shown.filter((e) => !e.disabled && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
  return { overflow: document.documentElement.scrollWidth - innerWidth, wide: wide.map((e) => e.outerHTML.slice(0, 80)),
    small: small.map((e) => e.outerHTML.slice(0, 80)), dark: light(ground(document.body)) < 0.2,
    texts: texts.length, contrast: Math.min(...texts.map(contrast)) };
})()
"""


def measure(page: Page, width: int, theme: str) -> None:
    found = page.js(_MEASURE)
    assert page.js("innerWidth") == width
    assert (found["overflow"], found["wide"], found["small"]) == (0, [], [])
    assert found["dark"] == (theme == "dark")
    assert found["texts"] >= 4
    assert found["contrast"] > 4.5  # WCAG AA
