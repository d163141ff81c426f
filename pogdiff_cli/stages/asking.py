"""Asking models many questions at once, so that no answer that was paid for is lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import FrameType
from typing import TypeVar

from pogdiff_cli.models.access import Access
from pogdiff_cli.progress import Track
from pogdiff_cli.project.config import CaptionConfig
from pogdiff_cli.project.digests import Digests, digest_value
from pogdiff_cli.project.judge_config import JudgeConfig
from pogdiff_cli.stages.context import Context

T = TypeVar("T")
Pause = Callable[[float], None]


class _GivenUp(Exception):
    """Another thread failed, or the user wants to leave: nothing more is sent."""


def ask_all(ask: Callable[[T, Pause], None], items: Sequence[T], *, threads: int, track: Track, label: str) -> None:
    """``ask(item, pause)`` for each item in ``threads`` threads; it asks, and files the answer before it returns.

    After a failure or the first SIGINT nothing more is sent; what is under way is waited for and kept: it is paid.
    """
    stop = threading.Event()
    one = _unless_stopped(ask, stop)
    with _stopping(stop), ThreadPoolExecutor(threads, thread_name_prefix="ask") as pool:
        try:
            for future in track(_as_they_end(pool, one, items, stop, 4 * threads), label, len(items)):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _unless_stopped(ask: Callable[[T, Pause], None], stop: threading.Event) -> Callable[[T], None]:
    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise _GivenUp

    def one(item: T) -> None:
        if stop.is_set():
            return
        try:
            ask(item, pause)
        except _GivenUp:
            return
        except BaseException:
            stop.set()  # before the other threads ask again
            raise

    return one


def _as_they_end(
    pool: ThreadPoolExecutor, one: Callable[[T], None], items: Sequence[T], stop: threading.Event, at_most: int
) -> Iterator[Future[None]]:
    """Futures as they end; ``at_most`` so many wait at once, whatever the number of items."""
    rest = iter(items)
    waiting: set[Future[None]] = set()
    while True:
        while len(waiting) < at_most and not stop.is_set():
            item = next(rest, None)
            if item is None:
                break
            waiting.add(pool.submit(one, item))
        if not waiting:
            return
        ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from ended


@contextlib.contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """The first SIGINT sets ``stop`` and ends the body in order: raised amid a wait, it can be lost in a callback."""
    asked = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked.is_set():
        raise KeyboardInterrupt


def access_of(context: Context, section: CaptionConfig | JudgeConfig) -> Access:
    """How the section's model is reached, on this process's device."""
    return Access(
        options=section.options,
        base_url=section.base_url,
        key_variable=section.api_key_env,
        timeout=section.timeout,
        retries=section.max_retries,
        threads=section.concurrency,
        allow_python=section.allow_python,
        device=str(context.devices.own),
    )


def weights_digest(spec: str, what: str, digests: Digests) -> str | None:
    """The digest of a local model's files: the same folder may hold another model tomorrow. None for an endpoint."""
    if not spec.startswith("hf:"):
        return None
    from pogdiff_cli.models.snapshots import local_snapshot

    folder = local_snapshot(spec, what)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".json", ".jinja", ".model")]
    return digest_value([(path.name, digests.of(path)) for path in files])
