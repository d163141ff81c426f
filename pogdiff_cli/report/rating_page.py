"""The page that raters see: one file, no network, nothing in it that tells whose picture is shown."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.report.content import Picture
from pogdiff_cli.report.pictures import open_picture

SCHEMA = "ratings/1"
_QUALITY = 86
_BESIDE = 2  # so many references stand beside the picture on a phone; more stand above it
_TEMPLATES = "pogdiff_cli.report"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One answer: what is recorded, and what stands on the button."""

    value: int
    label: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """What raters are asked of every picture."""

    text: str
    subject: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, kw_only=True)
class RatingItem:
    """One question: a picture to judge beside references, under an id that says nothing."""

    id: str
    references: tuple[Picture, ...]
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class RatingPage:
    """The page, and the digest by which answers name it."""

    html: str
    digest: str


class _Album:
    """Every picture once, small enough for the page, in the order of its digest: that order says nothing."""

    def __init__(self, side: int, limit: int) -> None:
        self._side, self._limit = side, limit
        self._by_source: dict[object, str] = {}
        self._encoded: dict[str, bytes] = {}
        self._size = 0

    def add(self, picture: Picture) -> str:
        """The digest under which the picture is kept."""
        if picture.source not in self._by_source:
            data = encode(picture, self._side)
            digest = hashlib.sha256(data).hexdigest()
            self._by_source[picture.source] = digest
            self._size += 0 if digest in self._encoded else len(data) * 4 // 3
            self._encoded[digest] = data
        return self._by_source[picture.source]

    def refuse_too_large(self, done: int, total: int) -> None:
        """Stop as soon as the page is known to exceed its limit."""
        if self._size > self._limit:
            million = 1_000_000
            likely = self._size / max(done, 1) * total / million
            raise PogdiffError(
                f"The rating page would hold about {likely:.0f} MB of pictures; the limit is "
                f"{self._limit / million:.0f} MB.",
                hint="Lower rate.identities_per_group, rate.images_per_identity or rate.image_side, or raise "
                "rate.max_megabytes.",
                exit_code=Exit.USAGE,
            )

    def ordered(self) -> list[str]:
        return sorted(self._encoded)

    def base64(self) -> list[str]:
        return [base64.b64encode(self._encoded[digest]).decode("ascii") for digest in self.ordered()]


def rating_page(question: Question, items: Iterable[RatingItem], *, total: int, side: int, limit: int) -> RatingPage:
    """The page of so many items, its pictures at most ``side`` pixels a side and ``limit`` bytes together."""
    album = _Album(side, limit)
    found: list[tuple[RatingItem, list[str], str]] = []
    for done, item in enumerate(items, start=1):
        found.append((item, [album.add(reference) for reference in item.references], album.add(item.picture)))
        album.refuse_too_large(done, total)
    place = {digest: number for number, digest in enumerate(album.ordered())}
    body = {
        "schema": SCHEMA,
        "question": question.text,
        "choices": [{"value": choice.value, "label": choice.label} for choice in question.choices],
        "items": [
            {"id": item.id, "references": [place[each] for each in references], "image": place[picture]}
            for item, references, picture in sorted(found, key=lambda entry: entry[0].id)
        ],
    }
    contents = json.dumps([body, album.ordered()], sort_keys=True)
    digest = hashlib.sha256(contents.encode()).hexdigest()
    data: dict[str, Any] = {**body, "page": digest, "images": album.base64()}
    most = max((len(item.references) for item, _, _ in found), default=1)
    return RatingPage(html=_html(question, data, references=most), digest=digest)


def encode(picture: Picture, side: int) -> bytes:
    """A JPEG at most ``side`` pixels a side, without any of the file's own metadata."""
    image = open_picture(picture.source)
    if image is None:
        where = picture.source if not isinstance(picture.source, bytes) else "A picture"
        raise PogdiffError(f"{where} cannot be decoded.", exit_code=Exit.DATA)
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.info = {}  # Pillow would write comments of the file into the new one
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


def _html(question: Question, data: dict[str, Any], *, references: int) -> str:
    script, style = _text("rating.js"), _text("rating.css")
    environment = Environment(
        loader=PackageLoader(_TEMPLATES, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("rating.html.j2").render(
        policy=_policy(script, style),
        style=style,
        script=script,
        data=_embedded(data),
        question=question.text,
        subject=question.subject,
        choices=question.choices,
        items=len(data["items"]),
        references="a reference picture" if references == 1 else f"{references} reference pictures",
        alone=references == 1,
        beside=references <= _BESIDE,
    )


def _policy(script: str, style: str) -> str:
    """No network at all, no script and no style but the page's own two, by digest."""
    rules: Sequence[str] = (
        "default-src 'none'",
        "img-src data:",
        f"script-src '{_source_digest(script)}'",
        f"style-src '{_source_digest(style)}'",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


def _source_digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _embedded(data: dict[str, Any]) -> str:
    """JSON inside a script element: no character in it can end that element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(name: str) -> str:
    return (resources.files(_TEMPLATES) / "templates" / name).read_text(encoding="utf-8")
