"""The judge's part of ``evaluate``: asking what its log does not answer yet.

An answer is on the disk before its thread asks the next question. A process that is killed therefore has paid for at
most ``evaluate.judge.concurrency`` answers that it does not have; whatever stands in the log is never asked again.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pogdiff_cli.data.images import decode
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.answers import read_score
from pogdiff_cli.metrics.judge_log import Entry, read_log
from pogdiff_cli.metrics.judged import Judged, JudgedImage
from pogdiff_cli.models.completions import ChatAnswer
from pogdiff_cli.models.judges import Question, load_judge
from pogdiff_cli.models.pictures import png_of
from pogdiff_cli.project.judge_config import JudgeConfig
from pogdiff_cli.project.layout import Run
from pogdiff_cli.project.line_log import LineWriter
from pogdiff_cli.stages.asking import Pause, access_of, ask_all
from pogdiff_cli.stages.context import Context
from pogdiff_cli.stages.dataset import Dataset
from pogdiff_cli.stages.judge_questions import Asked, Questions, log_of, plan_questions

if TYPE_CHECKING:
    from pogdiff_cli.stages.evaluate import Generated

_LONGEST_ANSWER = 4000  # characters that are kept, and read


def run(context: Context, dataset: Dataset, generated: Sequence[Generated], run: Run) -> Judged:
    """Ask what has not been answered, and read all answers."""
    config = context.project.config.evaluate.judge
    questions = plan_questions(context, dataset, generated, run)
    todo = questions.todo
    context.say(questions.cost[:1].upper() + questions.cost[1:] + ".")
    if len(todo) > config.max_requests:
        raise PogdiffError(
            f"The judge would be asked {len(todo)} times; evaluate.judge.max_requests is {config.max_requests}.",
            hint=f"To allow it: --set evaluate.judge.max_requests={len(todo)}   "
            "To ask less: lower evaluate.judge.repeats or images_per_identity.",
            exit_code=Exit.USAGE,
        )
    path = log_of(run)
    if todo:
        judge = load_judge(questions.model, access_of(context, config))
        with LineWriter(path) as log:

            def ask(asked: Asked, pause: Pause) -> None:
                pictures = tuple(map(_picture, asked.pictures, asked.digests))
                question = Question(prompt=asked.prompt, pictures=pictures, repeat=asked.repeat)
                log.append(_entry(asked, judge.ask(question, pause=pause), questions.model))

            ask_all(ask, todo, threads=judge.threads, track=context.track, label=f"Asking {judge.name}")
    judged = _read(replace(questions, log=read_log(path)), config)
    context.say(f"The judge's answers: {judged.in_words()}.")
    return judged


def _read(questions: Questions, config: JudgeConfig) -> Judged:
    images = [
        JudgedImage(
            identity=subject.identity,
            seed=subject.seed,
            readings=tuple(
                read_score(entry.answer, entry.refusal)
                for entry in (questions.log[question.key] for question in subject.questions)
            ),
        )
        for subject in questions.subjects
    ]
    label = f"{questions.model.partition(':')[2]}, {config.protocol}"
    return Judged(label=label, method=questions.method, images=tuple(images), unasked=questions.unasked)


def _entry(asked: Asked, answer: ChatAnswer, model: str) -> Entry:
    return Entry(
        key=asked.key,
        image=asked.digests[-1],
        reference=asked.digests[0] if len(asked.digests) > 1 else None,
        repeat=asked.repeat,
        model=model,
        prompt=asked.prompt_digest,
        answer=answer.text[:_LONGEST_ANSWER],
        refusal=answer.refusal,
        served_by=answer.model,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


@lru_cache(maxsize=64)
def _picture(path: Path, digest: str) -> bytes:
    """A PNG of the pixels alone, without EXIF, 1024 pixels at most on the longer side."""
    del digest  # under one path there may be another picture later
    return png_of(decode(path).image)
