"""Run the study, or show what it found so far.

python -m benchmarks.study run [--regime own-captions] [--split final] [--seeds 5] [--sweep] [--only NAME ...]
python -m benchmarks.study show [--regime own-captions] [--split final]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.study import grid, page, runs
from benchmarks.study.table import table


def main() -> int:
    """Do what is missing, one job after the other."""
    options = _options()
    if options.what == "show":
        print(table(runs.filed(runs.FILED / f"{options.regime}-{options.split}.jsonl")))
        return 0
    if options.what == "page":
        print(page.write())
        return 0
    conditions = grid.SWEEP if options.sweep else grid.CONDITIONS
    if options.only:
        conditions = {name: (grid.CONDITIONS | grid.SWEEP)[name] for name in options.only}
    for job in grid.jobs(options.regime, options.split, conditions, options.seeds, options.first_seed):
        if runs.is_filed(job):
            continue
        found = runs.run(job, Path(options.work).resolve())
        print(job.key, found["train_seconds"], found["score_seconds"], flush=True)
        print(table([found]), flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show", "page"))
    parser.add_argument("--regime", choices=tuple(grid.REGIMES), default="own-captions")
    parser.add_argument("--split", choices=("final", "choice"), default="final")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sweep", action="store_true", help="the settings to choose from, instead of the conditions")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these conditions")
    parser.add_argument("--work", default="study-projects", help="folder for the projects")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
