"""``pogdiff compare``: scored runs of one project or several side by side, and what the paper prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.metrics.compare import Comparison, compare
from pogdiff_cli.metrics.registry import METRICS, REQUESTS, did_you_mean
from pogdiff_cli.metrics.scores import GROUPS, Scores, read_scores
from pogdiff_cli.project.integrity import refuse_damaged
from pogdiff_cli.project.layout import Project, Run, find_root, open_project

SCORES = "scores.json"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is put side by side: scores whose ``run`` says where they come from, the first one compared with."""

    runs: tuple[Scores, ...]
    comparisons: tuple[Comparison, ...]  # of every further run with the first, where that means something
    apart: tuple[str, ...]  # why others cannot be compared with the first


def select(
    names: Sequence[str], folders: Sequence[Path], *, metrics: Sequence[str] = (), groups: Sequence[str] = ()
) -> Selection:
    """Read the scores of ``RUN`` and ``PROJECT:RUN``; without names, those of every scored run of the projects."""
    _known(groups, GROUPS, "group")
    kept = _metrics(metrics)
    projects = _Projects(folders)
    found = _unique(projects.named(names) if names else projects.scored())
    several = len({project.root for project, _ in found}) > 1
    runs = [
        dataclasses.replace(scores_of(project, run), run=projects.label(project, run, several=several))
        for project, run in found
    ]
    config = found[0][0].config
    comparisons, apart = [], []
    for scores in runs[1:]:
        try:
            comparisons.append(compare(runs[0], scores, seed=config.seed, resamples=config.evaluate.bootstrap))
        except PogdiffError as problem:
            apart.append(problem.message)
    return Selection(
        runs=tuple(_narrowed(scores, kept, groups) for scores in runs),
        comparisons=tuple(comparisons),
        apart=tuple(apart),
    )


def scores_of(project: Project, run: Run) -> Scores:
    """The scores that ``evaluate`` wrote; exit 4 where they are not what it wrote."""
    path = run.evaluation / SCORES
    refuse_damaged(project, [path.relative_to(project.root).as_posix()])
    return read_scores(path)


class _Projects:
    """The projects that are compared, each opened once."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders or (Path(),)
        self._opened: dict[Path, Project] = {}

    def open(self, folder: Path) -> Project:
        root = find_root(folder)
        if root not in self._opened:
            self._opened[root] = open_project(root)
        return self._opened[root]

    def scored(self) -> list[tuple[Project, Run]]:
        """Every run with scores, ``vanilla`` first."""
        found = []
        for project in map(self.open, self._folders):
            names = sorted(project.manifest().runs, key=lambda name: name != "vanilla")
            runs = [project.run(name) for name in names]
            for run in runs:
                if run.folder.is_dir():  # what was scored and has lost its scores is not left out in silence
                    refuse_damaged(project, [(run.evaluation / SCORES).relative_to(project.root).as_posix()])
            found += [(project, run) for run in runs if (run.evaluation / SCORES).is_file()]
        if not found:
            raise PogdiffError(
                "There is no scored run to compare in manifest.yaml.",
                hint="Run 'pogdiff evaluate' first.",
                exit_code=Exit.MISSING,
            )
        return found

    def named(self, names: Sequence[str]) -> list[tuple[Project, Run]]:
        """In the order in which they were typed."""
        return [each for name in names for each in self._named(name)]

    def _named(self, name: str) -> list[tuple[Project, Run]]:
        folder, _, run_name = name.rpartition(":")
        projects = [self.open(Path(folder))] if folder else [self.open(each) for each in self._folders]
        runs = [(project, project.run(run_name)) for project in projects]
        scored = [(project, run) for project, run in runs if (run.evaluation / SCORES).is_file()]
        if not scored:
            raise _unscored(run_name, [project for project, _ in runs])
        return scored

    def label(self, project: Project, run: Run, *, several: bool) -> str:
        """The run's name, with the project's where there are several, or its path where two are named alike."""
        if not several:
            return run.name
        alike = sum(root.name == project.root.name for root in self._opened) > 1
        return f"{project.root if alike else project.root.name}:{run.name}"


def _unscored(name: str, projects: Sequence[Project]) -> PogdiffError:
    known = [run for project in projects for run in project.manifest().runs]
    if name in known:
        return PogdiffError(
            f"The run '{name}' has no scores.",
            hint=f"Run 'pogdiff evaluate --run {name}' first.",
            exit_code=Exit.MISSING,
        )
    return PogdiffError(
        f"There is no run '{name}'.",
        hint=did_you_mean(name, known) if known else "No run has been trained yet.",
        exit_code=Exit.MISSING,
    )


def _unique(found: list[tuple[Project, Run]]) -> list[tuple[Project, Run]]:
    return list({run.folder: (project, run) for project, run in found}.values())


def _metrics(asked: Sequence[str]) -> tuple[str, ...]:
    """Metrics by their own name, or by that of the request that computes them."""
    _known(asked, {**METRICS, **REQUESTS}, "metric")
    wanted = {metric for name in asked for metric in ((name,) if name in METRICS else REQUESTS[name])}
    return tuple(name for name in METRICS if name in wanted)


def _known(asked: Sequence[str], known: Any, what: str) -> None:
    for name in asked:
        if name not in known:
            raise PogdiffError(f"Unknown {what} {name!r}.", hint=did_you_mean(name, known), exit_code=Exit.USAGE)


def _narrowed(scores: Scores, metrics: Sequence[str], groups: Sequence[str]) -> Scores:
    """Only what was asked for; everything where nothing was."""
    kept = [name for name in scores.metrics if name in metrics or not metrics]
    inside = {
        group: dataclasses.replace(found, metrics={name: found.metrics[name] for name in kept})
        for group, found in scores.groups.items()
        if group in groups or not groups
    }
    return dataclasses.replace(scores, metrics={name: scores.metrics[name] for name in kept}, groups=inside)
