"""The card that goes with exported weights: from what, on how much of what, how, and with which results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from pogdiff_cli.metrics.scores import Scores
from pogdiff_cli.report.tables import Table, summary_table, to_markdown

#: Identifiers of model hubs for licences that text-to-image models are published under.
_KNOWN = (
    "apache-2.0",
    "mit",
    "creativeml-openrail-m",
    "openrail++",
    "openrail",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc0-1.0",
)


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says. Identities are counted, never named."""

    title: str
    base: str
    licence: str | None
    family: str
    tuning: str
    data: Mapping[str, str]
    training: Mapping[str, str]
    scores: Scores | None


def model_card(facts: CardFacts) -> str:
    """Markdown with a front matter that model hubs read."""
    tags = ["text-to-image", "diffusers", "pogdiff", *(["lora"] if facts.tuning == "lora" else [])]
    front = {"base_model": facts.base, "library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": tags}
    if facts.licence is not None:
        front |= _hubs_licence(facts.licence)
    licence = "Its folder names no licence; see where the base comes from."
    if facts.licence is not None:
        licence = f"The base's licence, as its folder gives it: `{facts.licence}`. It holds for these weights too."
    results = "These weights have not been evaluated."
    if facts.scores is not None:
        results = "Means over identities, by the number of training images, with 95 % intervals.\n\n" + to_markdown(
            summary_table([facts.scores])
        )
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {' '.join(facts.title.split())}",
        f"{facts.family}, fine-tuned from `{facts.base}` with pogdiff.",
        f"## Licence\n\n{licence}",
        f"## Data\n\n{_pairs(facts.data)}",
        f"## Training\n\n{_pairs(facts.training)}",
        f"## Results\n\n{results}",
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _hubs_licence(name: str) -> dict[str, str]:
    """Hubs know the usual licences by name; every other is called "other", and has its own name beside."""
    return {"license": name} if name in _KNOWN else {"license": "other", "license_name": name}


def _pairs(values: Mapping[str, str]) -> str:
    return to_markdown(Table(header=("", ""), rows=tuple(values.items())))
