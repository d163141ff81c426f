"""One writer at a time: a kernel lock that is free again after kill -9, and the name of who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from pogdiff_cli.errors import Exit, PogdiffError

_A_LOOK = 1.0  # seconds


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
        _sign(holder, command)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def project_lock(folder: Path, command: str, *, mode: Literal["shared", "alone"]) -> Iterator[None]:
    """Stages share the project; what puts it in order is alone in it. Exit 75 names who is in the way."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / "project.holder.json"
    with contextlib.ExitStack() as stack:
        descriptor = os.open(folder / "project.lock", os.O_RDWR | os.O_CREAT, 0o666)
        stack.callback(os.close, descriptor)
        if not _taken(descriptor, fcntl.LOCK_SH if mode == "shared" else fcntl.LOCK_EX):
            raise PogdiffError(
                f"The project is in use by {_describe(holder if mode == 'shared' else _newest(folder))}.",
                hint="Wait until it has ended, or stop it, and try again.",
                exit_code=Exit.LOCKED,
            )
        if mode == "alone":
            _sign(holder, command)
            stack.callback(holder.unlink, missing_ok=True)
        yield


def in_use(folder: Path) -> bool:
    """Whether a stage, or what puts the project in order, is at work now."""
    try:
        descriptor = os.open(folder / "project.lock", os.O_RDONLY)
    except OSError:
        return False  # nobody was ever
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _taken(descriptor: int, kind: int) -> bool:
    """A shared lock is tried for a moment: somebody may be having a look."""
    end = time.monotonic() + (_A_LOOK if kind == fcntl.LOCK_SH else 0.0)
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)


def _sign(holder: Path, command: str) -> None:
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.time()}
    holder.write_text(json.dumps(facts), encoding="utf-8")


def _newest(folder: Path) -> Path:
    """The signature of the stage that began last, or of another that is alone in the project."""
    found = [path for path in folder.glob("*.holder.json") if path.name != "manifest.holder.json"]
    return max(found, key=lambda path: path.stat().st_mtime, default=folder / "project.holder.json")


def _describe(holder: Path) -> str:
    try:
        facts = json.loads(holder.read_text(encoding="utf-8"))
        since = time.strftime("%H:%M:%S", time.localtime(facts["since"]))
        return f"process {facts['pid']} on {facts['host']} ('{facts['command']}', since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
