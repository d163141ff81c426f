"""``pogdiff rate``: one static page on which people judge the images of all runs, blinded."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.ratings import RatedItem
from pogdiff_cli.project.atomic import write_text
from pogdiff_cli.project.config import Config, dotted
from pogdiff_cli.project.integrity import refuse_damaged
from pogdiff_cli.project.layout import Run
from pogdiff_cli.project.lineage import StagePlan
from pogdiff_cli.project.rate_config import RateConfig
from pogdiff_cli.report.content import Picture
from pogdiff_cli.report.rating_page import Choice, Question, RatingItem, rating_page
from pogdiff_cli.stages.context import Context, Made, Result, perform
from pogdiff_cli.stages.dataset import Dataset, groups, load_dataset
from pogdiff_cli.stages.evaluate import Generated, read_samples
from pogdiff_cli.stages.rating_key import RatingKey, blind, key_path, secret_of, write_key
from pogdiff_cli.stages.sample import INDEX

_LIKENESS = ("Not at all", "A little", "Somewhat", "Very much")
_NOISE_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """One identity: its group, real images to show as references, and each run's generated ones."""

    identity: str
    shot: str
    real: tuple[Path, ...]
    generated: Mapping[str, Mapping[int, Path]]  # run -> seed -> file
    seeds: tuple[int, ...]  # shared by all runs


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """An item with what stands behind it."""

    item: RatingItem
    key: RatedItem


def run(context: Context, runs: Sequence[str] | None = None, *, output: Path | None = None) -> Result:
    """Write ``rating.html`` and the key that unblinds its answers, ``artifacts/rating/rating_key.json``."""
    project = context.project
    chosen = [project.run(name) for name in runs] if runs else sampled_runs(context)
    refuse_damaged(project, [item.samples.relative_to(project.root).as_posix() for item in chosen])
    dataset = load_dataset(context)
    subjects = _subjects(context, dataset, chosen)
    path = output or project.root / "rating.html"
    plan = StagePlan(
        key="rate",
        parameters={**dotted(project.config.rate, "rate", operational="without"), "seed": project.config.seed},
        inputs={},
        outputs=(key_path(project).relative_to(project.root).as_posix(),),
    )
    samples = {item.name: str(project.digests.of(item.samples)) for item in chosen}
    inputs = {"data": dataset.digest, **{f"samples of {name}": digest for name, digest in samples.items()}}
    # a page costs seconds and may have been mailed or deleted: it is written whenever it is asked for
    return perform(replace(context, mode="force"), plan, inputs, lambda _: _write(context, subjects, samples, path))


def sampled_runs(context: Context) -> list[Run]:
    """Every run that has samples."""
    folder = context.project.root / "runs"
    names = sorted(item.parent.parent.name for item in folder.glob(f"*/samples/{INDEX}"))
    if not names:
        raise PogdiffError(
            "There is no run with samples to rate.", hint="Run 'pogdiff sample' first.", exit_code=Exit.MISSING
        )
    return [context.project.run(name) for name in names]


def question_of(rate: RateConfig) -> Question:
    """What is asked: as in the paper whether it is the same person, or how alike they are on five steps."""
    subject = " ".join(rate.subject.split())
    if rate.protocol == "same":
        answers = (Choice(value=1, label="Yes"), Choice(value=0, label="No"))
        return Question(text=f"Is this the same {subject}?", subject=subject, choices=answers)
    labels = (*_LIKENESS, f"The same {subject}")
    choices = tuple(Choice(value=value, label=label) for value, label in enumerate(labels, start=1))
    return Question(text=f"How much does the picture look like this {subject}?", subject=subject, choices=choices)


def _write(context: Context, subjects: Sequence[_Subject], samples: Mapping[str, str], path: Path) -> Made:
    config = context.project.config
    secret = secret_of(context.project)
    question = question_of(config.rate)
    entries = list(_entries(context, subjects, secret, question))
    page = rating_page(
        question,
        context.track((entry.item for entry in entries), "Shrinking pictures", len(entries)),
        total=len(entries),
        side=config.rate.image_side,
        limit=config.rate.max_megabytes * 1_000_000,
    )
    protocol = {
        "name": config.rate.protocol,
        "question": question.text,
        "categories": sorted(choice.value for choice in question.choices),
    }
    items = {entry.item.id: entry.key for entry in entries}
    # the key first: a page without one could never be unblinded
    write_key(
        context.project, RatingKey(page=page.digest, secret=secret, protocol=protocol, samples=samples, items=items)
    )
    write_text(path, page.html)
    kinds = [entry.key.kind for entry in entries]
    return Made(
        facts={
            "page": path.name,
            "page_digest": page.digest,
            "runs": list(samples),
            "identities": len(subjects),
            "items": len(entries),
            "repeats": kinds.count("repeat"),
            "checks": kinds.count("check"),
            "megabytes": round(len(page.html) / 1e6, 2),
        }
    )


def _subjects(context: Context, dataset: Dataset, runs: Sequence[Run]) -> list[_Subject]:
    """The identities that every run has drawn, in the groups asked for, at most so many a group."""
    config = context.project.config
    drawn = {item.name: {one.identity: one for one in read_samples(item)} for item in runs}
    shot = groups(context, dataset)
    codes = {name: code for code, name in enumerate(dataset.records.identity_names)}
    everybody = {identity for one in drawn.values() for identity in one}
    shared = [name for name in codes if all(name in one for one in drawn.values())]
    found = [_subject(dataset, codes[name], shot[codes[name]], drawn) for name in shared]
    usable = [subject for subject in found if subject.seeds and subject.real]
    if len(usable) < len(everybody):
        context.say(f"{len(everybody) - len(usable)} identities without images in every run are left out.")
    chosen = _at_most(usable, config)
    if not chosen:
        raise PogdiffError(
            "No identity has images in every run.",
            hint="Sample all runs with the same settings, or name fewer runs with --runs.",
            exit_code=Exit.MISSING,
        )
    return chosen


def _subject(dataset: Dataset, code: int, shot: str, drawn: Mapping[str, Mapping[str, Generated]]) -> _Subject:
    records = dataset.records
    identity = records.identity_names[code]
    rows = records.rows_of(code)
    # unseen photographs first: against a training image a copy would look best of all
    rows = np.concatenate([rows[records.heldout[rows]], rows[~records.heldout[rows]]])
    generated = {
        name: {
            seed: path for seed, path in zip(one[identity].seeds, one[identity].paths, strict=True) if path.is_file()
        }
        for name, one in drawn.items()
    }
    seeds = set.intersection(*(set(by_seed) for by_seed in generated.values()))
    real = tuple(dataset.paths(rows))
    return _Subject(identity=identity, shot=shot, real=real, generated=generated, seeds=tuple(sorted(seeds)))


def _at_most(subjects: Sequence[_Subject], config: Config) -> list[_Subject]:
    """Where a group has more identities than are to be shown, which ones is drawn from the seed."""
    draw = np.random.default_rng(config.seed)
    chosen: list[_Subject] = []
    for group in config.rate.groups:
        inside = [subject for subject in subjects if subject.shot == group]
        keep = draw.permutation(len(inside))[: config.rate.identities_per_group]
        chosen += [inside[index] for index in sorted(keep)]
    return chosen


def _entries(context: Context, subjects: Sequence[_Subject], secret: str, question: Question) -> Iterator[_Entry]:
    rate = context.project.config.rate
    # as many references for everyone: their number must not tell the rare from the frequent
    shown = min(rate.references, *(len(subject.real) for subject in subjects))
    images = [
        _image(context, secret, subject, shown, (name, seed))
        for subject in subjects
        for seed in subject.seeds[: rate.images_per_identity]
        for name in subject.generated
    ]
    yield from images
    draw = np.random.default_rng([context.project.config.seed, 1])
    again = draw.permutation(len(images))[: round(rate.repeats * len(images))]
    for index in sorted(again):
        first = images[index]
        item = replace(first.item, id=blind(secret, "repeat", first.item.id))
        yield _Entry(item=item, key=replace(first.key, kind="repeat", of=first.item.id))
    yield from _checks(subjects, shown, secret, question, draw.integers(len(subjects), size=rate.attention_checks))


def _image(context: Context, secret: str, subject: _Subject, shown: int, which: tuple[str, int]) -> _Entry:
    name, seed = which
    path, real = subject.generated[name][seed], subject.real[:shown]
    contents = [str(context.project.digests.of(file)) for file in (path, *real)]
    item = RatingItem(
        id=blind(secret, "image", name, subject.identity, str(seed), *contents),
        references=tuple(Picture(source=file) for file in real),
        picture=Picture(source=path, seed=seed),
    )
    return _Entry(item=item, key=RatedItem(kind="image", run=name, identity=subject.identity, shot=subject.shot))


def _checks(
    subjects: Sequence[_Subject], shown: int, secret: str, question: Question, whose: Iterable[int]
) -> Iterator[_Entry]:
    """By turns a reference shown again, and a picture with nothing in it: who looks can only answer one way."""
    ladder = sorted(choice.value for choice in question.choices)
    near = max(1, len(ladder) // 2)
    for number, index in enumerate(whose):
        real = subjects[index].real[:shown]
        identical = number % 2 == 0
        source = real[number % shown] if identical else _nothing(number)
        item = RatingItem(
            id=blind(secret, "check", str(number), subjects[index].identity),
            references=tuple(Picture(source=file) for file in real),
            picture=Picture(source=source),
        )
        yield _Entry(
            item=item, key=RatedItem(kind="check", accept=tuple(ladder[-near:] if identical else ladder[:near]))
        )


def _nothing(seed: int) -> bytes:
    """Soft patches of colour, PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((_NOISE_SIDE, _NOISE_SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(2)).save(buffer, "PNG")
    return buffer.getvalue()
