"""Commands that crash at a known moment, disks that are small, and what is left of a project afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from conftest import Command, TinyProject

from pogdiff_cli.cli.app import _status
from pogdiff_cli.project import atomic
from pogdiff_cli.project.manifest import read_manifest

CRASHED = 77
When = Literal["before", "after"]
_DRAWN = re.compile(r"(\.partial-[^/]*-)[A-Za-z0-9_]{8}(?=[./]|$)")  # what mkstemp appends


@dataclass(frozen=True, kw_only=True, order=True)
class Moment:
    """The ``count``-th time that ``call`` is made for ``path``, before or after it."""

    call: str
    path: str
    count: int
    when: When


def in_child(work: Callable[[], int]) -> int:
    """Run ``work`` in a process of its own; its exit status."""
    child = os.fork()
    if child == 0:
        status = 99
        with contextlib.suppress(BaseException):  # whatever it is, this copy of the test must not go on
            status = work()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def watched(root: Path, happened: Callable[[Moment], None]) -> None:
    """Call ``happened`` around every flush and rename below ``root``; for a child, which never ends it."""
    seen: Counter[tuple[str, str]] = Counter()

    def around(name: str, original: Any) -> Any:
        def call(first: Any, *rest: Any, **keys: Any) -> Any:
            target = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else str(rest[0])
            if not target.startswith(str(root)):
                return original(first, *rest, **keys)
            path = _DRAWN.sub(r"\1", os.path.relpath(target, root))
            seen[name, path] += 1
            count = seen[name, path]
            happened(Moment(call=name, path=path, count=count, when="before"))
            result = original(first, *rest, **keys)
            happened(Moment(call=name, path=path, count=count, when="after"))
            return result

        return call

    os.fsync = around("fsync", os.fsync)
    os.replace = around("replace", os.replace)
    atomic._exchanged = around("exchange", atomic._exchanged)  # both names at once


def moments_of(project: TinyProject, *words: str | Path) -> list[Moment]:
    """Every moment of a command that ends well, in order; the project is changed by it."""
    log = project.root.parent / "moments.txt"

    def work() -> int:
        with log.open("w", encoding="utf-8") as file:
            watched(project.root, lambda m: print(m.call, m.count, m.when, m.path, sep="\t", file=file))
            return _status(typed(project, *words))

    assert in_child(work) == 0
    lines = [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines()]
    return [Moment(call=call, path=path, count=int(count), when=when) for call, count, when, path in lines]


def crashed(project: TinyProject, moment: Moment, *words: str | Path) -> bool:
    """Type a command that dies at ``moment`` as kill -9 would have it; False where it ended well before that."""

    def happened(now: Moment) -> None:
        if now == moment:
            os._exit(CRASHED)

    def work() -> int:
        watched(project.root, happened)
        return _status(typed(project, *words))

    status = in_child(work)
    assert status in (CRASHED, 0), f"{status} at {moment}"
    return status == CRASHED


def typed(project: TinyProject, *words: str | Path) -> list[str]:
    name, *rest = map(str, words)
    return [name, "-C", str(project.root), *project.flags, *rest]  # later ones win


def copied(project: TinyProject, root: Path, *settings: str, command: Command | None = None) -> TinyProject:
    """The same project in another place, with further settings."""
    shutil.copytree(project.root, root)
    return TinyProject(root=root, settings=(*project.settings, *settings), command=command or project.command)


#: What says when or in which order something happened, and is no result.
_NO_RESULTS = re.compile(
    r"artifacts/cache/(locks/.*|digests\.json|scan\.jsonl|.*\.partial-.*)|artifacts/receipts/.*"
    r"|runs/[^/]*/checkpoints/[^/]*/(state|digests)\.json|manifest\.yaml|report\.html|.*\.stderr\.txt"
)
_SECONDS = re.compile(rb', "[a-z_]*(seconds|per_second)[a-z_]*": [^,}]*')


def results(project: TinyProject) -> dict[str, str]:
    """Digest of every file that a command has made, whenever it was."""
    found = {}
    for path in sorted(project.root.rglob("*")):
        name = path.relative_to(project.root).as_posix()
        if path.is_file() and not _NO_RESULTS.fullmatch(name):
            content = path.read_bytes()
            if path.name == "metrics.jsonl":
                content = _SECONDS.sub(b"", content)
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def facts(project: TinyProject) -> dict[str, Any]:
    """What the manifest says of every stage but times and who did it."""
    manifest = read_manifest(project.root / "manifest.yaml")
    runs = {f"{name}/{key}": record for name, run in manifest.runs.items() for key, record in run.items()}
    return {
        key: (record.state, record.parameters, record.inputs, record.outputs)
        for key, record in {**manifest.stages, **runs}.items()
    }


def leftovers(project: TinyProject) -> list[Path]:
    """Half-written files that nobody will finish; those in caches go when they are old."""
    found = [path for path in project.root.rglob(f"{atomic.HIDDEN}*") if "artifacts/cache/" not in path.as_posix()]
    return sorted(found)


def mountable() -> bool:
    """Whether this process may mount file systems of its own."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, check=False, capture_output=True).returncode == 0
    )


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own for ``folder``."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
