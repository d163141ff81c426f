"""What a verdict must not hide: a model that collapsed or copied, images in which no face was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pogdiff_cli.metrics.scores import Scores

_NO_FACE_SHARE = 0.05
_NO_SCORE_SHARE = 0.05


def cautions(baseline: Scores, candidate: Scores, outcomes: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Sentences for the reader; ``outcomes`` is {group: {metric: "better" | "worse" | "inconclusive"}}."""
    for group, found in outcomes.items():
        if found.get("fid") == "better" and "worse" in (found.get("recall"), found.get("coverage")):
            yield (
                f"{group}: FID improved while recall or coverage fell. With few real images FID rewards a "
                "model that repeats one picture."
            )
        if found.get("copy") == "worse":
            yield f"{group}: more generated images nearly equal a training image than before."
    if rated_apart(baseline, candidate):
        yield "The runs were rated on different pages: their human ratings are not compared."
    for scores in (baseline, candidate):
        yield from _faceless(scores)
        yield from _unscored(scores)


def rated_apart(baseline: Scores, candidate: Scores) -> bool:
    """Whether both runs have human ratings, but not of the same page: raters then saw other pictures and questions."""
    pages = [scores.settings.get("human", {}).get("page") for scores in (baseline, candidate)]
    return None not in pages and pages[0] != pages[1]


def _faceless(scores: Scores) -> Iterator[str]:
    for key, extractor in scores.extractors.items():
        counts = [entry.missing[key].generated for entry in scores.per_identity if key in entry.missing]
        scored = sum(entry.generated for entry in scores.per_identity)
        if scored and sum(counts) / scored > _NO_FACE_SHARE:
            lost = f"{sum(counts)} of {scored} generated images"
            yield f"{scores.run}: {extractor.name} found no face in {lost}."


def _unscored(scores: Scores) -> Iterator[str]:
    """A judge that refuses the better pictures of one run leaves the worse ones to decide."""
    counts = scores.judge.get("groups", {}).get("all", {})
    answers, useful = counts.get("answers", 0), counts.get("score", 0)
    if answers and 1 - useful / answers > _NO_SCORE_SHARE:
        yield f"{scores.run}: {answers - useful} of the judge's {answers} answers are no score."
