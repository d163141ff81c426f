"""One writer at a time: a kernel lock that is free again after kill -9, and the name of who holds it.

On one machine the kernel's lock decides. On a folder that several machines share it does so where the file system
carries locks between them (NFS 4, NFS 3 with its lock service, most cluster file systems). Where it does not, the
holder's signs of life do: while it works, it counts up a number beside its name. A name from another machine whose
number stands still for ``_SILENT`` seconds is that of a process that is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.atomic import made_folder
from pogdiff_cli.project.disk import explained, mount_of

_BEAT = 5.0  # seconds between two signs of life
_SILENT = 30.0  # seconds without one after which a holder on another machine is taken for gone
_LOOK = 0.5  # seconds between two looks at it
_MOMENT = 1.0  # seconds: somebody may be having a look
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(path: Path, what: str, command: str, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock at ``path``; a second writer gets exit 75 and the holder's name."""
    holder = path.with_suffix(".holder.json")
    with explained(path):
        made_folder(path.parent)
        lock = _acquired(path, what, holder, wait)
    try:
        _refuse_one_elsewhere(holder, what)
        with _named(holder, command):
            yield
    finally:
        lock.release()


@contextlib.contextmanager
def project_lock(folder: Path, command: str, *, mode: Literal["shared", "alone"]) -> Iterator[None]:
    """Stages share the project; what puts it in order is alone in it. Exit 75 names who is in the way."""
    holder = folder / "project.holder.json"
    with contextlib.ExitStack() as stack:
        with explained(folder):
            made_folder(folder)
            descriptor = os.open(folder / "project.lock", os.O_RDWR | os.O_CREAT, 0o666)
        stack.callback(os.close, descriptor)
        if not _taken(descriptor, fcntl.LOCK_SH if mode == "shared" else fcntl.LOCK_EX):
            raise _held("The project", _read(holder if mode == "shared" else _newest(folder)))
        if mode == "alone":
            stack.enter_context(_named(holder, command))
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
    end = time.monotonic() + (_MOMENT if kind == fcntl.LOCK_SH else 0.0)
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)


def _newest(folder: Path) -> Path:
    """The signature of the stage that began last, or of another that is alone in the project."""
    found = [path for path in folder.glob("*.holder.json") if path.name != "manifest.holder.json"]
    return max(found, key=lambda path: path.stat().st_mtime, default=folder / "project.holder.json")


def _acquired(path: Path, what: str, holder: Path, wait: float) -> FileLock:
    lock = FileLock(path, timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        raise _held(what, _read(holder)) from None
    except (OSError, NotImplementedError) as problem:
        if isinstance(problem, OSError) and problem.errno not in _NO_LOCKS:
            raise
        raise PogdiffError(
            f"The file system at {mount_of(path)} has no locks ({problem}): two commands could write at once.",
            hint="Mount it with locks (for NFS: version 4, or without nolock), or put the project elsewhere.",
        ) from problem
    return lock


def _held(what: str, facts: dict[str, Any] | None) -> PogdiffError:
    return PogdiffError(
        f"{what} is in use by {_describe(facts)}.",
        hint="Wait until it has ended, or stop it, and try again.",
        exit_code=Exit.LOCKED,
    )


def _refuse_one_elsewhere(holder: Path, what: str) -> None:
    """The kernel's lock is ours; a holder on another machine may live all the same, where it carries no locks."""
    first = _read(holder)
    if first is None or first.get("host") == socket.gethostname():
        return
    end = time.monotonic() + _SILENT
    while time.monotonic() < end:
        time.sleep(_LOOK)
        now = _read(holder)
        if now is None:
            return
        if now != first:
            raise _held(what, now)


@contextlib.contextmanager
def _named(holder: Path, command: str) -> Iterator[None]:
    """Our name beside the lock, with signs of life, while the body runs."""
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.time()}
    over = threading.Event()
    with explained(holder):
        _write(holder, facts, 0)

    def live() -> None:
        beat = 0
        while not over.wait(_BEAT):
            beat += 1
            with contextlib.suppress(OSError):
                _write(holder, facts, beat)

    signs = threading.Thread(target=live, name="signs of life", daemon=True)
    signs.start()
    try:
        yield
    finally:
        over.set()
        signs.join()
        with contextlib.suppress(OSError):
            holder.unlink()


def _write(holder: Path, facts: dict[str, Any], beat: int) -> None:
    # of constant length and in place: a disk that has become full still takes it
    data = json.dumps({**facts, "beat": f"{beat:010d}"}).encode()
    descriptor = os.open(holder, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


def _read(holder: Path) -> dict[str, Any] | None:
    """What the holder says of itself; None where there is none, or where it is torn."""
    try:
        facts = json.loads(holder.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


def _describe(facts: dict[str, Any] | None) -> str:
    try:
        if facts is None:
            return "another process"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["since"]))
        return f"process {facts['pid']} on {facts['host']} ('{facts['command']}', since {since})"
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return "another process"
