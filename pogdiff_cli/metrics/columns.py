"""The paper's two columns, all-shot and few-shot, each on its own number of generated images (Sec. 4.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pogdiff_cli.metrics.inputs import IdentityFeatures, ScoreSettings
from pogdiff_cli.metrics.scores import Scores
from pogdiff_cli.metrics.scoring import score


def score_columns(identities: Sequence[IdentityFeatures], *, settings: ScoreSettings, **rest: Any) -> Scores:
    """``score``, the group few on ``settings.few_images_per_identity`` images where that is set.

    All groups but few, and the values per identity, are those of ``images_per_identity``. What the group few is the
    mean of is kept beside them as ``few_per_identity``. The two columns answer different questions: recall grows
    with the number of images, and the Frechet distance falls.
    """
    every = score(identities, settings=dataclasses.replace(settings, few_images_per_identity=None), **rest)
    if settings.few_images_per_identity is None or "few" not in every.groups:
        return every
    tail = score(identities, settings=settings, **rest)
    curve = {**every.recall_curve, **{group: tail.recall_curve[group] for group in tail.recall_curve if group == "few"}}
    return dataclasses.replace(
        every,
        settings={**every.settings, "few_images_per_identity": settings.few_images_per_identity},
        groups={**every.groups, "few": tail.groups["few"]},
        few_per_identity=tuple(entry for entry in tail.per_identity if entry.shot == "few"),
        recall_curve=curve,
    )
