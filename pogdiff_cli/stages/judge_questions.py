"""The questions that a judge is asked about one run, and which of them its log answers already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.judge_log import Entry, key_of, read_log
from pogdiff_cli.models.judges.prompts import prompt_for, template_of
from pogdiff_cli.project.digests import digest_value
from pogdiff_cli.project.layout import Run
from pogdiff_cli.stages.asking import weights_digest
from pogdiff_cli.stages.context import Context, Result
from pogdiff_cli.stages.dataset import Dataset

if TYPE_CHECKING:
    from pogdiff_cli.stages.evaluate import Generated


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One repeat of the question about one generated image."""

    key: str
    repeat: int
    prompt: str
    prompt_digest: str
    pictures: tuple[Path, ...]  # the real image, if there is one, then the generated one
    digests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One generated image with its questions."""

    identity: str
    seed: int
    questions: tuple[Asked, ...]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Everything to be asked, what the log holds of it, and how it is asked."""

    subjects: tuple[Subject, ...]
    log: dict[str, Entry]
    model: str
    method: dict[str, Any]
    unasked: dict[str, str]

    @property
    def todo(self) -> list[Asked]:
        """What the log lacks, each question once: equal images share their answers."""
        wanted = {question.key: question for subject in self.subjects for question in subject.questions}
        return [question for key, question in wanted.items() if key not in self.log]

    @property
    def answered(self) -> int:
        """How many of the questions the log answers."""
        return len({q.key for subject in self.subjects for q in subject.questions} & self.log.keys())

    @property
    def cost(self) -> str:
        """What asking would cost, in words."""
        return f"the judge {self.model}: {len(self.todo)} requests to make, {self.answered} answers in the log"


def log_of(run: Run) -> Path:
    """Where a run's answers stand; deleting the file is how they are asked for again."""
    return run.evaluation / "judge.jsonl"


def with_cost(result: Result, questions: Questions) -> Result:
    """A planned evaluation that says how many requests it would make."""
    facts = {"judge_requests": len(questions.todo), "judge_answered": questions.answered}
    return replace(result, facts={**result.facts, **facts}, reasons=(*result.reasons, questions.cost))


def plan_questions(context: Context, dataset: Dataset, generated: Sequence[Generated], run: Run) -> Questions:
    """All questions of a run in the order of identities and seeds, without asking any."""
    config = context.project.config.evaluate.judge
    if config.model is None:
        raise PogdiffError(
            "The metric 'judge' needs a model.",
            hint="Set evaluate.judge.model, for instance to openai:gpt-4o or hf:FOLDER.",
            exit_code=Exit.USAGE,
        )
    weights = weights_digest(config.model, "judge", context.project.digests)
    codes = {identity: code for code, identity in enumerate(dataset.records.identity_names)}
    records = dataset.records
    trained = {identity for identity, code in codes.items() if not records.heldout[records.rows_of(code)].all()}
    known = [group for group in generated if group.identity in trained and group.paths]  # those that are scored
    images = min([config.images_per_identity, *(len(group.paths) for group in known)])
    subjects: list[Subject] = []
    unasked: dict[str, str] = {}
    for group in known:
        references = _references(context, dataset, codes[group.identity]) if config.protocol == "reference" else None
        if references is not None and not references:
            unasked[group.identity] = "no real image to compare with"
            continue
        subjects += _subjects(context, group, images, references, weights or config.model)
    return Questions(
        subjects=tuple(subjects),
        log=read_log(log_of(run)),
        model=config.model,
        method={
            "model": config.model,
            **({"weights": weights} if weights else {}),
            "protocol": config.protocol,
            "prompt": digest_value([template_of(config.protocol), config.options]),
            "repeats": config.repeats,
            "images_per_identity": images,
            "options": config.options,
        },
        unasked=unasked,
    )


def _subjects(
    context: Context, group: Generated, images: int, references: list[tuple[Path, str]] | None, model: str
) -> Iterator[Subject]:
    config = context.project.config.evaluate.judge
    prompt = prompt_for(config.protocol, group.identity)
    prompt_digest = digest_value([prompt, config.options])
    for number in range(images):
        path = group.paths[number]
        image = context.project.digests.of(path)
        if image is None:
            raise PogdiffError(f"{path} is missing.", hint="Run 'pogdiff sample' again.", exit_code=Exit.MISSING)
        real, digest = references[number % len(references)] if references else (None, None)
        yield Subject(
            identity=group.identity,
            seed=group.seeds[number],
            questions=tuple(
                Asked(
                    key=key_of(image=image, reference=digest, repeat=repeat, model=model, prompt=prompt_digest),
                    repeat=repeat,
                    prompt=prompt,
                    prompt_digest=prompt_digest,
                    pictures=(path,) if real is None else (real, path),
                    digests=(image,) if digest is None else (digest, image),
                )
                for repeat in range(config.repeats)
            ),
        )


def _references(context: Context, dataset: Dataset, code: int) -> list[tuple[Path, str]]:
    """The real images of an identity that ``evaluate.true_set`` allows, with their digests."""
    records = dataset.records
    rows = records.rows_of(code)
    if context.project.config.evaluate.true_set == "heldout":
        rows = rows[records.heldout[rows]]
    return list(zip(dataset.paths(rows), (f"sha256:{key}" for key in dataset.keys(rows)), strict=True))
