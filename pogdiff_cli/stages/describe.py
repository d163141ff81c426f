"""The part of ``caption`` that asks a captioner about pictures: only what its log does not answer yet.

An answer is on the disk before its thread asks the next question, and stays there: whatever becomes of the data,
a picture whose bytes were described is not described again under the same instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pogdiff_cli.data.captions import CaptionRequest
from pogdiff_cli.data.descriptions import Description, key_of, read_descriptions
from pogdiff_cli.data.images import decode_known
from pogdiff_cli.models.captioners import load_captioner
from pogdiff_cli.project.digests import digest_value
from pogdiff_cli.project.layout import Project
from pogdiff_cli.project.line_log import LineWriter
from pogdiff_cli.stages.asking import Pause, access_of, ask_all, weights_digest
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One picture, what the captioner is told of it, and the key of its answer."""

    key: str
    image: str
    path: Path
    request: CaptionRequest


@dataclass(frozen=True, kw_only=True)
class Described:
    """The answer for each request, in order (none in processes that only lend a hand), and how many were there."""

    answers: list[Description]
    reused: int


def describe(context: Context, dataset: Dataset, requests: Sequence[CaptionRequest]) -> Described:
    """Ask about what is not in ``artifacts/descriptions.jsonl``; with ``--force`` about everything."""
    project, world = context.project, context.world
    if world.main:
        _take_in_parts(project)
    world.together()
    asked = _questions(context, dataset, requests)
    known = {} if context.mode == "force" else read_descriptions(project.descriptions)
    # equal pictures share their answer
    todo = [each for key, each in {each.key: each for each in asked}.items() if key not in known]
    reused = sum(each.key in known for each in asked)
    del known
    world.together()  # all have read before anyone writes
    _ask(context, world.share(todo))
    world.together()
    if not world.main:
        return Described(answers=[], reused=reused)
    _take_in_parts(project)
    found = read_descriptions(project.descriptions)
    return Described(answers=[found[each.key] for each in asked], reused=reused)


def _questions(context: Context, dataset: Dataset, requests: Sequence[CaptionRequest]) -> list[_Asked]:
    caption = context.project.config.caption
    own = caption.captioner.startswith("py:")
    weights = context.world.agreed(lambda: weights_digest(caption.captioner, "captioner", context.project.digests))
    question = digest_value([weights or caption.captioner, caption.instruction, caption.options])
    asked = []
    for row, request in zip(dataset.train_rows, requests, strict=True):
        # a function of one's own may look at all that it is told; a model sees the picture
        told = digest_value([caption.captioner, asdict(request)]) if own else question
        image = dataset.sha256[row]
        path = dataset.images / request.file_name
        asked.append(_Asked(key=key_of(image=image, question=told), image=image, path=path, request=request))
    return asked


def _ask(context: Context, todo: Sequence[_Asked]) -> None:
    if not todo:
        return
    project, caption = context.project, context.project.config.caption
    captioner = load_captioner(caption.captioner, access_of(context, caption), instruction=caption.instruction)
    named = caption.captioner.startswith("py:") or "{name}" in caption.instruction
    size = 1 if caption.captioner.startswith("openai:") else caption.batch_size
    batches = [todo[start : start + size] for start in range(0, len(todo), size)]
    path = project.descriptions if context.world.main else _part(project, context.world.rank)
    with LineWriter(path) as log:

        def ask(batch: Sequence[_Asked], pause: Pause) -> None:
            images = [decode_known(each.path, each.image) for each in batch]
            texts = captioner.describe(images, [each.request for each in batch], pause=pause)
            log.append(
                *(
                    Description(
                        key=each.key,
                        image=each.image,
                        captioner=captioner.name,
                        name=each.request.name if named else "",
                        text=text,
                    )
                    for each, text in zip(batch, texts, strict=True)
                )
            )

        ask_all(ask, batches, threads=captioner.threads, track=context.track, label="Captioning")


def _part(project: Project, rank: int) -> Path:
    """Where a process that is not the main one writes its answers."""
    return project.descriptions.with_name(f"descriptions.part-{rank}.jsonl")


def _take_in_parts(project: Project) -> None:
    """Append what other processes wrote, in this attempt or in one that was killed."""
    for path in sorted(project.descriptions.parent.glob("descriptions.part-*.jsonl")):
        with LineWriter(project.descriptions) as log:
            log.append(*read_descriptions(path).values())
        path.unlink()
