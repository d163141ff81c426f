"""Images whose bytes changed though their sizes and times did not: what is remembered of them is not what is there."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pogdiff_cli.data.scan import remembered, state_of
from pogdiff_cli.progress import Track, untracked
from pogdiff_cli.project.digests import PREFIX, digest_bytes
from pogdiff_cli.project.layout import Project
from pogdiff_cli.stages.finding import Finding


def turned_images(project: Project, *, track: Track = untracked) -> Iterator[Finding]:
    """Read every image that is remembered in its present state; they are the user's and left alone."""
    known = remembered(project.cache / "scan.jsonl")
    for name, (state, digest) in track(known.items(), "Reading images", len(known)):
        path = project.images / name
        try:
            if state_of(path) != state or digest_bytes(path) == PREFIX + digest:
                continue
        except OSError:
            continue
        yield Finding(
            path=os.path.relpath(path, project.root) if path.is_relative_to(project.root) else str(path),
            state="damaged",
            detail="its bytes are others than when it was read, its size and time the same",
            advice="restore it from a backup; if it is meant to be so, touch it",
        )
