"""What surrounds a command: signals that end it in order, and standard streams that may be closed or go away."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from pogdiff_cli.errors import Exit, Stopped

_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM and a terminal that goes end the body as Ctrl-C does, cleaning up; a second one ends it at once.

    A signal that is ignored, as SIGHUP is under nohup, stays so.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(Exit(128 + number))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler == signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler == signal.SIG_DFL:
                signal.signal(number, handler)


def open_what_is_closed() -> None:
    """Give closed standard streams a place that swallows all: the next file opened would be taken for one of them."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (it stays open)


def let_go(descriptor: int) -> None:
    """Nobody reads this stream any more: what is still written to it goes nowhere."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def flushed() -> OSError | None:
    """Write out what is left for standard output; the failure, unless it is that nobody reads it."""
    failure = None
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            let_go(descriptor)
        except (OSError, ValueError) as problem:
            let_go(descriptor)
            failure = problem if descriptor == 1 and isinstance(problem, OSError) else failure
    return failure
