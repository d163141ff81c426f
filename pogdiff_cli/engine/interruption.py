"""SIGINT, SIGTERM and SIGUSR1 set a flag; the save happens at a step's end; a second SIGINT exits now."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from pogdiff_cli.errors import Exit


@dataclass
class Request:
    """What signals have asked for so far."""

    stop: Exit | None = None
    save: bool = False


@contextlib.contextmanager
def listening() -> Iterator[Request]:
    """Collect signals while the body runs; handlers are put back afterwards."""
    request = Request()

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        if request.stop is not None:
            raise KeyboardInterrupt
        request.stop = Exit.INTERRUPTED

    def terminate(number: int, frame: FrameType | None) -> None:
        del number, frame
        request.stop = Exit.TERMINATED

    def save(number: int, frame: FrameType | None) -> None:
        del number, frame
        request.save = True

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: terminate, signal.SIGUSR1: save}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
