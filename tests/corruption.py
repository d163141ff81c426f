"""A finished project, seeded damage to its files, and what each command then makes of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conftest import TINY, Outcome, write_pictures

from pogdiff_cli.cli.app import _status
from pogdiff_cli.project.manifest import read_manifest, write_manifest

RUNS = ("vanilla", "pogdiff")
PEOPLE = {"Ada Lovelace": 5, "Alan Turing": 3, "Grace Hopper": 2}
_HELD_OUT = {"Ada Lovelace/4.png", "Alan Turing/2.png"}
_SETTINGS = (
    "train.max_train_steps=4",
    "train.checkpointing_steps=2",
    "train.logging_steps=1",
    "train.learning_rate=1e-3",
    "density.steps=20",
    "sample.num_inference_steps=2",
    "evaluate.bootstrap=100",
    "evaluate.metrics=[fid, dino, recall, identity]",
    "runs.vanilla={train.method: vanilla, train.tuning: lora, train.rank: 2}",
    "runs.pogdiff={train.method: pogdiff}",
)


def pogdiff(*arguments: str | Path) -> Outcome:
    """One command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = _status([str(argument) for argument in arguments])
    return Outcome(status=status, out=out.getvalue(), err=err.getvalue())


def finished(root: Path, sd: Path, vit: Path) -> Path:
    """A project with two runs, one of them a LoRA, through every stage; all settings are in its file."""
    write_pictures(root / "data" / "images", PEOPLE)
    lines = [
        {"file_name": name, "identity": person, "split": "heldout" if name in _HELD_OUT else "train"}
        for person, count in PEOPLE.items()
        for name in (f"{person}/{i}.png" for i in range(count))
    ]
    (root / "data" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "pogdiff.yaml").write_text(configuration([s.format(sd=sd, vit=vit) for s in TINY] + list(_SETTINGS)))
    made = pogdiff("run", "-C", root)
    assert made.status == 0, made.err
    return root


def configuration(settings: list[str]) -> str:
    """``a.b=c`` as YAML of two levels; of two settings of one key the later one holds."""
    sections: dict[str, dict[str, str] | str] = {"data": {"images": "data/images", "metadata": "data/metadata.jsonl"}}
    for setting in settings:
        path, _, value = setting.partition("=")
        section, _, key = path.partition(".")
        if key:
            below = sections.setdefault(section, {})
            assert isinstance(below, dict)
            below[key] = value
        else:
            sections[section] = value
    lines = []
    for section, value in sections.items():
        if isinstance(value, str):
            lines.append(f"{section}: {value}")
        else:
            lines += [f"{section}:", *(f"  {key}: {text}" for key, text in value.items())]
    return "\n".join(lines) + "\n"


Kind = Literal["bit flip", "truncation", "deletion", "zeroed block", "swap", "garbage"]
KINDS: tuple[Kind, ...] = ("bit flip", "bit flip", "truncation", "deletion", "zeroed block", "swap", "garbage")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Files of one sort, what a message may call them, and the commands that read them."""

    files: str  # glob
    called: tuple[str, ...]
    commands: tuple[str, ...]
    said_is_enough: bool = False  # the user's own, or a log that nothing is computed from: a change has to be said


_RUN = "runs/*"
_STAGES = ("status", "run", "run", "repair")
TARGETS: dict[str, Target] = {
    "manifest": Target(
        files="manifest.yaml",
        called=("manifest.yaml",),
        commands=("status", "run", "resume", "sample", "evaluate", "report", "compare", "export", "doctor", "repair"),
    ),
    "captions": Target(
        files="artifacts/captions.jsonl",
        called=("captions.jsonl", "artifacts"),
        commands=(*_STAGES, "resume", "fit-density", "dry-run"),
    ),
    "names": Target(
        files="artifacts/names.yaml",
        called=("names.yaml",),
        commands=(*_STAGES, "resume", "sample", "report"),
        said_is_enough=True,
    ),
    "index": Target(
        files="artifacts/index/*", called=("artifacts/index",), commands=(*_STAGES, "resume", "report", "dry-run")
    ),
    "density": Target(
        files="artifacts/density/*", called=("artifacts/density",), commands=(*_STAGES, "resume", "report", "dry-run")
    ),
    "receipts": Target(
        files="artifacts/receipts/**/*.json",
        called=("receipts",),
        commands=("status", "run", "doctor", "repair", "repair"),
    ),
    "tensor caches": Target(
        files="artifacts/cache/*/*/*.safetensors",
        called=("artifacts/cache",),
        commands=("train anew", "index anew", "density anew", "evaluate anew", "report", "repair"),
    ),
    "digests": Target(
        files="artifacts/cache/*.json*",
        called=("artifacts/cache",),
        commands=(*_STAGES, "sample", "evaluate", "report", "export", "resume", "train anew"),
    ),
    "checkpoints": Target(
        files=f"{_RUN}/checkpoints/*/*",
        called=("checkpoint-",),
        commands=("status", "run", *("resume",) * 3, "repair"),
    ),
    "final": Target(
        files=f"{_RUN}/final/**/*",
        called=("/final",),
        commands=(*_STAGES, "sample", "sample anew", "evaluate", "export", "export", "report"),
    ),
    "samples": Target(
        files=f"{_RUN}/samples/**/*",
        called=("/samples",),
        commands=(*_STAGES, "sample", "evaluate", "evaluate anew", "report", "rate"),
    ),
    "evaluation": Target(
        files=f"{_RUN}/evaluation/*",
        called=("/evaluation", "scores.json"),
        commands=(*_STAGES, "evaluate", "report", "compare", "compare", "export"),
    ),
    "metadata": Target(
        files="data/metadata.jsonl",
        called=("metadata.jsonl",),
        commands=(*_STAGES, "evaluate", "report", "inspect", "resume"),
        said_is_enough=True,
    ),
    "images": Target(
        files="data/images/*/*",
        called=("metadata.jsonl", ".png", "set aside", "data/images"),
        commands=(*_STAGES, "evaluate", "report", "inspect"),
        said_is_enough=True,
    ),
    "logs": Target(
        files=f"{_RUN}/*.json*",
        called=("metrics.jsonl", "exposure.json"),
        commands=("status", "run", "report", "report", "resume", "export"),
        said_is_enough=True,
    ),
    "resolved configuration": Target(
        files=f"{_RUN}/config.resolved.yaml",
        called=("config.resolved.yaml",),
        commands=("status", "run", "export", "export", "report"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is done to which files."""

    target: str
    kind: Kind
    files: tuple[str, ...]  # relative to the project
    command: str
    seed: int

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.kind} in {' and '.join(self.files)}, then {self.command}"


def drawn(root: Path, seed: int) -> Damage:
    """The damage of one seed; sorts of files are equally likely."""
    draw = random.Random(seed)
    name = draw.choice(sorted(TARGETS))
    target = TARGETS[name]
    files = sorted(path.relative_to(root).as_posix() for path in root.glob(target.files) if path.is_file())
    files = [file for file in files if "/locks/" not in file]
    kind = draw.choice(KINDS)
    first = draw.choice(files)
    others = [file for file in files if file != first and (root / file).read_bytes() != (root / first).read_bytes()]
    if kind == "swap" and not others:
        kind = "bit flip"
    if kind != "deletion" and (root / first).stat().st_size == 0:
        kind = "garbage"
    hit = (first, draw.choice(others)) if kind == "swap" else (first,)
    return Damage(target=name, kind=kind, files=hit, command=draw.choice(target.commands), seed=seed)


def inflict(root: Path, damage: Damage) -> None:
    """Do it. Other names of the same file keep their contents."""
    draw = random.Random(f"{damage.seed} bytes")
    paths = [root / file for file in damage.files]
    contents = [bytearray(path.read_bytes()) for path in paths]
    for path in paths:
        path.unlink()
    if damage.kind == "deletion":
        return
    if damage.kind == "swap":
        contents.reverse()
    else:
        contents = [_damaged(contents[0], damage.kind, draw)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)


def _damaged(content: bytearray, kind: Kind, draw: random.Random) -> bytearray:
    place = draw.randrange(len(content)) if content else 0
    if kind == "bit flip":
        content[place] ^= 1 << draw.randrange(8)
    elif kind == "truncation":
        del content[place:]
    elif kind == "zeroed block":
        length = min(len(content) - place, draw.choice((1, 16, 512, 4096)))
        content[place : place + length] = bytes(length)
    elif kind == "garbage":
        content += draw.randbytes(draw.randint(1, 64))
    return content


def copied(source: Path, target: Path) -> Path:
    """A project with the contents of another; what is only ever replaced as a whole is linked."""
    shutil.rmtree(target, ignore_errors=True)

    def copy(old: str, new: str) -> None:
        if old.endswith((".safetensors", ".png", ".npy")):
            os.link(old, new)
        else:
            shutil.copy2(old, new)

    shutil.copytree(source, target, copy_function=copy)
    return target


# ---- commands -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Action:
    """A command line (``{run}`` is the run that was hit), what is put in place first, what it has to come to."""

    words: tuple[str, ...]
    results: tuple[str, ...]  # globs whose contents have to be those of the undamaged project
    before: Callable[[Path, str], None] = lambda root, run: None
    after: tuple[str, ...] = ()  # a further command


def _unfinished(root: Path, run: str) -> None:
    """As if training had been killed after its first checkpoint."""
    folder = root / "runs" / run
    shutil.rmtree(folder / "final")
    shutil.rmtree(sorted((folder / "checkpoints").iterdir())[-1])
    manifest = read_manifest(root / "manifest.yaml")
    record = manifest.runs[run]["train"]
    manifest.runs[run]["train"] = record.model_copy(update={"state": "running", "outputs": {}, "facts": {}})
    write_manifest(root / "manifest.yaml", manifest)


_FINALS, _SAMPLES, _SCORES = "runs/*/final/**/*", "runs/*/samples/*/*.png", "runs/*/evaluation/*"
_OWN_SCORES = "runs/*/evaluation/[!c]*"  # a comparison is of two runs: the report writes it
_ARTIFACTS = "artifacts/*/*.npy"
_CAPTIONS = "artifacts/*.*"
ACTIONS: dict[str, Action] = {
    "status": Action(words=("status",), results=()),
    "doctor": Action(words=("doctor",), results=()),
    "inspect": Action(words=("inspect",), results=()),
    "run": Action(words=("run",), results=(_CAPTIONS, _ARTIFACTS, _FINALS, _SAMPLES, _SCORES)),
    "repair": Action(
        words=("doctor", "--repair"), results=(_CAPTIONS, _ARTIFACTS, _FINALS, _SAMPLES, _SCORES), after=("run",)
    ),
    "resume": Action(words=("train", "--name", "{run}"), results=(_FINALS, "runs/*/metrics.jsonl"), before=_unfinished),
    "train anew": Action(words=("train", "--name", "{run}", "--force"), results=(_FINALS,)),
    "dry-run": Action(words=("train", "--name", "{run}", "--dry-run"), results=()),
    "index anew": Action(words=("index", "--force"), results=(_ARTIFACTS,)),
    "fit-density": Action(words=("fit-density",), results=(_ARTIFACTS, _CAPTIONS)),
    "density anew": Action(words=("fit-density", "--force"), results=(_ARTIFACTS,)),
    "sample": Action(words=("sample", "--run", "{run}"), results=(_SAMPLES,)),
    "sample anew": Action(words=("sample", "--run", "{run}", "--force"), results=(_SAMPLES,)),
    "evaluate": Action(words=("evaluate", "--run", "{run}", "--json"), results=(_SAMPLES, _OWN_SCORES)),
    "evaluate anew": Action(words=("evaluate", "--run", "{run}", "--force"), results=(_SAMPLES, _OWN_SCORES)),
    "report": Action(words=("report",), results=("report.html",)),
    "rate": Action(words=("rate",), results=()),
    "compare": Action(words=("compare", "--json"), results=()),
    "export": Action(words=("export", "{root}/exported", "--run", "{run}", "--force"), results=("exported/**/*",)),
}
#: Commands whose printed result is compared too.
_PRINTED = ("compare",)


def run_of(damage: Damage) -> str:
    """The run that was hit; else the one that reads most."""
    return next((run for run in RUNS if f"runs/{run}/" in damage.files[0]), "pogdiff")


def act(root: Path, action: str, run: str) -> Outcome:
    words = [word.format(run=run, root=root) for word in ACTIONS[action].words]
    first = pogdiff(words[0], "-C", root, *words[1:])
    after = ACTIONS[action].after
    if not after:
        return first
    last = pogdiff(after[0], "-C", root, *after[1:])
    return Outcome(status=last.status, out=first.out + last.out, err=first.err + last.err)


Results = Mapping[str, str]


def results(root: Path, action: str, run: str, outcome: Outcome) -> Results:
    """What a command is asked for: contents by file, of one run where it is about one, and what it printed."""
    others = [f"runs/{name}/" for name in RUNS if name != run and "{run}" in ACTIONS[action].words]
    found = {
        path.relative_to(root).as_posix(): _content(path)
        for pattern in ACTIONS[action].results
        for path in root.glob(pattern)
        if path.is_file() and not any(other in path.as_posix() for other in others)
    }
    return found | ({"stdout": outcome.out} if action in _PRINTED else {})


def _content(path: Path) -> str:
    if path.suffix == ".html":  # the page tells when it was made, and how long each stage took
        text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC|\d+\.\d s\b", "", path.read_text(encoding="utf-8"))
        return hashlib.sha256(text.encode()).hexdigest()
    if path.name == "metrics.jsonl":  # and so does the log
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return repr([(line["step"], line["denoise"]) for line in lines])
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Oracle:
    """What each command comes to in the undamaged project."""

    def __init__(self, base: Path, work: Path) -> None:
        self.base, self.work = base, work
        self._known: dict[tuple[str, str], tuple[Outcome, Results]] = {}

    def expected(self, action: str, run: str) -> tuple[Outcome, Results]:
        if (action, run) not in self._known:
            root = copied(self.base, self.work)
            ACTIONS[action].before(root, run)
            outcome = act(root, action, run)
            assert outcome.status == 0, (action, outcome.err)
            self._known[action, run] = outcome, results(root, action, run, outcome)
        return self._known[action, run]

    def judge(self, damage: Damage) -> str:
        """How it ended: ``detected``, ``as before`` or ``said``; AssertionError where it is none of them."""
        run = run_of(damage)
        _, wanted = self.expected(damage.command, run)
        root = copied(self.base, self.work)
        ACTIONS[damage.command].before(root, run)
        present = [file for file in damage.files if (root / file).is_file()]
        if len(present) < len(damage.files):  # this command does not start with that file
            return "not there"
        inflict(root, damage)
        outcome = act(root, damage.command, run)
        told = f"{damage}\nstatus {outcome.status}\n{outcome.out[-3000:]}{outcome.err}"
        assert "Internal error" not in outcome.err, told
        assert "Traceback" not in outcome.err, told
        target = TARGETS[damage.target]
        names = any(name in outcome.err + outcome.out for name in (*target.called, Path(damage.files[0]).name))
        if outcome.status != 0:
            assert names, f"the message does not name the file\n{told}"
            assert len((outcome.err + outcome.out).strip().splitlines()) >= 2, (
                f"the message does not say what to do\n{told}"
            )
            return "detected"
        found = results(root, damage.command, run, outcome)
        if damage.command == "status":
            return self._judged_status(damage, outcome, names, told)
        different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if not different:
            return "as before"
        assert target.said_is_enough, f"silently different: {different}\n{told}"
        assert names, f"silently different: {different}\n{told}"
        return "said"

    def _judged_status(self, damage: Damage, outcome: Outcome, names: bool, told: str) -> str:
        """Says what is not up to date; what no stage reads it need not know of."""
        stale = "changed" in outcome.out or "missing" in outcome.out or "has not been run" in outcome.out
        if damage.target in ("tensor caches", "digests", "receipts", "checkpoints", "logs", "resolved configuration"):
            assert not stale, f"status is wrong\n{told}"
            return "as before"
        known = damage.target != "evaluation" or damage.files[0].endswith("scores.json")
        if known:
            assert stale, f"status does not see it\n{told}"
        return "detected" if stale else "as before"
