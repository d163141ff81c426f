"""What stands behind the ids of a rating page: the key that takes the blinds off, kept in the project."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.ratings import RatedItem
from pogdiff_cli.project.atomic import write_text
from pogdiff_cli.project.layout import Project

SCHEMA = "pogdiff.rating_key/1"
NAME = "rating_key.json"


@dataclass(frozen=True, kw_only=True)
class RatingKey:
    """One page: which item is which image of which run, and what was asked."""

    page: str
    secret: str
    protocol: Mapping[str, Any]  # name, question, categories
    samples: Mapping[str, str]  # run -> digest of the samples that were shown
    items: Mapping[str, RatedItem]

    @property
    def categories(self) -> tuple[int, ...]:
        """The answers that could be given."""
        return tuple(self.protocol["categories"])


def key_path(project: Project) -> Path:
    """The key of the page that was written last."""
    return project.artifacts / "rating" / NAME


def secret_of(project: Project) -> str:
    """The project's secret, so that the same pictures give the same page again; a new one where there is none."""
    path = key_path(project)
    return read_key(path).secret if path.is_file() else secrets.token_hex(32)


def blind(secret: str, *facts: str) -> str:
    """HMAC-SHA256 of the facts, 20 hex digits: without the secret the id says nothing."""
    message = json.dumps(facts).encode()
    return hmac.new(bytes.fromhex(secret), message, hashlib.sha256).hexdigest()[:20]


def write_key(project: Project, key: RatingKey) -> None:
    """Write the key; that of another page is kept beside it, for answers that are still on their way."""
    path = key_path(project)
    if path.is_file():
        old = read_key(path)
        if old.page != key.page:
            # copied, not moved: the secret in it must be there whenever the program stops
            write_text(_archived(path, old.page), path.read_text(encoding="utf-8"))
    write_text(path, json.dumps({"schema": SCHEMA, **dataclasses.asdict(key)}, indent=1, ensure_ascii=False))


def archived_key(project: Project, page: str) -> Path | None:
    """The key of an earlier page, if it is still there."""
    known = {_archived(path, read_key(path).page): path for path in key_path(project).parent.glob("rating_key-*.json")}
    return known.get(_archived(key_path(project), page))


def read_key(path: Path) -> RatingKey:
    """A key from disk; exit 4 where there is none or where it is damaged."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        items = {
            str(name): RatedItem(**{**entry, "accept": tuple(entry["accept"])}) for name, entry in body["items"].items()
        }
        bytes.fromhex(body["secret"])
        return RatingKey(**{**body, "items": items})
    except FileNotFoundError:
        raise PogdiffError(
            "There is no rating page to unblind.", hint="Run 'pogdiff rate' first.", exit_code=Exit.MISSING
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PogdiffError(
            f"{path} is no key of a rating page: {error}.",
            hint="Restore it from a backup; without it answers cannot be unblinded.",
            exit_code=Exit.MISSING,
        ) from error


def _archived(path: Path, page: str) -> Path:
    return path.with_name(f"rating_key-{page[:12]}.json")
