"""The report in a real browser, as wide as a phone and a desk: pictures arrive, nothing overflows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from test_report import report

from pogdiff_cli.report.page import render_html

_PROBE = """
<script>
addEventListener("load", () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.body.querySelectorAll("*")].filter(
    (e) => !e.closest(".scroll") && e.getBoundingClientRect().right > root.clientWidth + 1);
  const images = [...page.images];
  const result = {
    overflow: root.scrollWidth - root.clientWidth, wide: wide.map((e) => e.tagName + "." + e.className),
    images: images.length, complete: images.filter((i) => i.complete && i.naturalWidth > 0).length,
    scripted: page.title === "scripted",
    spilling: [...page.querySelectorAll("td, th, dt, dd, p, figcaption, .card")].filter(
      (e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0).map((e) => e.textContent),
    unlabelled: [...page.querySelectorAll("svg")].filter((e) => e.querySelectorAll("text").length < 2).length,
    ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    text: frame.contentWindow.getComputedStyle(page.body).color,
    smallest: Math.min(...[...page.querySelectorAll("svg text")].map((t) => t.getBoundingClientRect().height)),
  };
  document.querySelector("pre").textContent = JSON.stringify(result);
});
</script><pre></pre>
"""


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found is not None, "this test needs Chromium on the PATH; leave it out with -m 'not browser'"
    return found


def opened(folder: Path, width: int, theme: str, page: str | None = None) -> dict[str, object]:
    """What the page looks like from outside: an inert frame of the width, measured by a script beside it."""
    html = (page or render_html(report())).replace('<html lang="en">', f'<html lang="en" data-theme="{theme}">')
    (folder / "report.html").write_text(html, encoding="utf-8")
    frame = f'<iframe src="report.html" style="width:{width}px;height:900px;border:0"></iframe>'
    (folder / "probe.html").write_text(f"<!doctype html>{frame}{_PROBE}", encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom")
    done = subprocess.run(
        [
            browser(),
            *flags,
            "--window-size=1400,1000",
            "--virtual-time-budget=5000",
            f"--user-data-dir={folder / 'profile'}",
            (folder / "probe.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    match = re.search(r"<pre>(.*?)</pre>", done.stdout, flags=re.DOTALL)
    assert match is not None
    result: dict[str, object] = json.loads(unescape(match[1]))
    return result


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_and_all_pictures_arrive(tmp_path: Path, width: int) -> None:
    found = opened(tmp_path, width, "light")
    assert found["overflow"] == 0, found["wide"]
    assert found["wide"] == []
    assert found["images"] == found["complete"] == 24
    assert found["spilling"] == []
    assert found["unlabelled"] == 0


@pytest.mark.browser
@pytest.mark.parametrize("escaped", [True, False])
def test_names_that_are_scripts_do_nothing_even_without_the_pages_policy(tmp_path: Path, escaped: bool) -> None:
    """The names try to change the title. Unescaped, for comparison, they would succeed."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render_html(report()))
    html = html.replace("alert(1)", "document.title=String.fromCharCode(115,99,114,105,112,116,101,100)")
    assert html.count("fromCharCode") > 20
    found = opened(tmp_path, 1280, "light", html if escaped else unescape(html))
    assert found["scripted"] == (not escaped)


@pytest.mark.browser
def test_dark_and_light_differ_and_both_can_be_read(tmp_path: Path) -> None:
    def luminance(colour: object) -> float:
        red, green, blue = (int(c) / 255 for c in re.findall(r"\d+", str(colour))[:3])
        return float(0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2)

    for theme in ("light", "dark"):
        folder = tmp_path / theme
        folder.mkdir()
        found = opened(folder, 360, theme)
        ground, text = luminance(found["ground"]), luminance(found["text"])
        contrast = (max(ground, text) + 0.05) / (min(ground, text) + 0.05)
        assert (ground > text) == (theme == "light")
        assert contrast > 7
        assert float(str(found["smallest"])) >= 9  # pixels, of the labels in the figures
