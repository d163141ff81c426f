"""Takes away each protection of ``tests/protections.py`` in a copy of the package; a named test has to fail without it.

python tests/without_protection.py              every protection, with a table at the end
python tests/without_protection.py images yaml  those of some promises
python tests/without_protection.py --list
"""

# ruff: noqa: T201 - a command of its own
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protections import PROMISES, PROTECTIONS, Protection

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("pogdiff_cli", "tests", "templates", "benchmarks", "docs", "pyproject.toml", "README.md", "constraints.txt")
_PATIENCE = 400.0  # seconds for the tests of one protection


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened without one protection: the tests that failed, or why that is not known."""

    protection: Protection
    failed: tuple[str, ...]
    problem: str = ""
    seconds: float = 0.0


def removal_problem(protection: Protection, root: Path = ROOT) -> str:
    """Why this protection cannot be taken away, "" where it can: the source has moved on, and the table has to."""
    path = root / "pogdiff_cli" / protection.file
    if not path.is_file():
        return f"there is no {protection.file}"
    count = path.read_text(encoding="utf-8").count(protection.old)
    return "" if count == 1 else f"what it replaces stands {count} times in {protection.file}"


def unknown_tests(protection: Protection, root: Path = ROOT) -> list[str]:
    """Tests that the table names and that are not there."""
    missing = []
    for test in protection.tests:
        file, _, name = test.partition("::")
        path = root / "tests" / file
        if not path.is_file() or (name and f"def {name.split('[')[0]}(" not in path.read_text(encoding="utf-8")):
            missing.append(test)
    return missing


def without(protection: Protection) -> Outcome:
    """Run the named tests on a copy from which the protection was taken."""
    problem = removal_problem(protection) or ", ".join(f"no test {name}" for name in unknown_tests(protection))
    if problem:
        return Outcome(protection=protection, failed=(), problem=problem)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="without-") as folder:
        copy = Path(folder)
        for name in COPIED:
            _copy(ROOT / name, copy / name)
        path = copy / "pogdiff_cli" / protection.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(protection.old, protection.new), encoding="utf-8")
        failed, problem = _failing(copy, protection.tests)
    return Outcome(protection=protection, failed=failed, problem=problem, seconds=time.monotonic() - began)


def _copy(source: Path, place: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    elif source.is_file():
        shutil.copy2(source, place)


def _failing(copy: Path, tests: Sequence[str]) -> tuple[tuple[str, ...], str]:
    words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "-rf", "--tb=no"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *words, *(f"tests/{test}" for test in tests)],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return (), f"the tests took more than {_PATIENCE:g} s"
    failed = tuple(re.findall(r"^FAILED tests/(\S+)", done.stdout, flags=re.MULTILINE))
    if failed:
        return failed, ""
    if done.returncode == 0:
        return (), "every named test passes without it"
    return (), "the tests did not run: " + " ".join(done.stdout.split()[-30:] + done.stderr.split()[-30:])


def main(arguments: Sequence[str]) -> int:
    """Check the protections of the promises named, or all."""
    unknown = [word for word in arguments if word not in PROMISES and word != "--list"]
    if unknown:
        print(f"No promise {unknown[0]}; there are {', '.join(PROMISES)}.")
        return 2
    chosen = [one for one in PROTECTIONS if not set(arguments) & set(PROMISES) or one.promise in arguments]
    bad = 0
    for protection in chosen:
        if "--list" in arguments:
            print(f"{protection.promise:9} {protection.what}  [{protection.file}]")
            continue
        outcome = without(protection)
        bad += bool(outcome.problem)
        said = f"PROBLEM: {outcome.problem}" if outcome.problem else f"fails: {outcome.failed[0]}"
        print(
            f"{protection.promise:9} {protection.what}  [{protection.file}]  {outcome.seconds:.0f} s\n          {said}",
            flush=True,
        )
    if "--list" not in arguments:
        print(f"{len(chosen) - bad} of {len(chosen)} protections are held by a test.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
