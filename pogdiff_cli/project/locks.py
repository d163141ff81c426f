"""One writer at a time: a kernel lock that is free again after kill -9, and the name of who holds it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pogdiff_cli.errors import Exit, PogdiffError


@contextlib.contextmanager
def locked(path: Path, what: str, command: str, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock at ``path``; a second writer gets exit 75 and the holder's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=wait)
    holder = path.with_suffix(".holder.json")
    try:
        lock.acquire()
    except Timeout:
        raise PogdiffError(
            f"{what} is in use by {_describe(holder)}.",
            hint="Wait until it has ended, or stop it, and try again.",
            exit_code=Exit.LOCKED,
        ) from None
    try:
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.time()}
        holder.write_text(json.dumps(facts), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _describe(holder: Path) -> str:
    try:
        facts = json.loads(holder.read_text(encoding="utf-8"))
        since = time.strftime("%H:%M:%S", time.localtime(facts["since"]))
        return f"process {facts['pid']} on {facts['host']} ('{facts['command']}', since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
