"""What is compared: regimes, splits and conditions. Nothing here runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Split = Literal["final", "choice"]
"""``final``: the template's. ``choice``: heads and tails change places; settings are chosen there."""
Settings = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Regime:
    """A setting of the problem that all conditions share."""

    what: str
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run with its samples and scores."""

    regime: str
    split: Split
    condition: str
    seed: int
    settings: Settings  # of regime and condition, merged

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What a result is filed under."""
        return self.regime, self.split, self.condition, self.seed


_WORDINGS = (
    "An image of {name}.",
    "A photo of {name}.",
    "A portrait of {name}.",
    "A close-up of {name}.",
    "This is {name}.",
    "A black and white photo of {name}.",
)

REGIMES: dict[str, Regime] = {
    "own-captions": Regime(
        what="a caption of its own for nearly every photograph, an evaluation prompt never seen in training",
        settings={"train.max_train_steps": 1200},
    ),
    "shared-wordings": Regime(
        what="six wordings for all photographs, the evaluation prompt among them, short training",
        settings={"train.max_train_steps": 300, "caption.prompts": list(_WORDINGS)},
    ),
}

_POGDIFF: Settings = {"train.method": "pogdiff"}
_BALANCED: Settings = {"train.sampling": "balanced"}

CONDITIONS: dict[str, Settings] = {
    "vanilla": {"train.method": "vanilla"},
    "cbdm": {"train.method": "cbdm"},
    "t2h": {"train.method": "t2h"},
    "pogdiff": _POGDIFF,
    "vanilla balanced": {"train.method": "vanilla", **_BALANCED},
    "pogdiff balanced": {**_POGDIFF, **_BALANCED},
}

#: Who is compared with whom in the tables.
CANDIDATE = "pogdiff"
BASELINES = tuple(name for name in CONDITIONS if name != CANDIDATE)

#: Tried on the split ``choice`` with few seeds, to choose the settings above.
SWEEP: dict[str, Settings] = {
    "k1 mean1": {**_POGDIFF, "index.k": 1},
    "k1 mean5": {**_POGDIFF, "index.k": 1, "density.mean": 5.0},
    "k5 mean5": {**_POGDIFF, "density.mean": 5.0},
    "k1 mean5 balanced": {**_POGDIFF, **_BALANCED, "index.k": 1, "density.mean": 5.0},
}


def jobs(regime: str, split: Split, conditions: Mapping[str, Settings], seeds: int, first: int = 0) -> Iterator[Job]:
    """Seed after seed, so that a study that was stopped early has every condition equally often."""
    for seed in range(first, first + seeds):
        for condition, settings in conditions.items():
            merged = {**REGIMES[regime].settings, **settings, "seed": seed}
            yield Job(regime=regime, split=split, condition=condition, seed=seed, settings=merged)
