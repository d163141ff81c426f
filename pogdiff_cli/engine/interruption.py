"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 set a flag; the save happens at a step's end; a second SIGINT exits now."""

from __future__ import annotations

import contextlib
import datetime
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pogdiff_cli.engine.world import World
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
        del frame
        request.stop = Exit(128 + number)

    def save(number: int, frame: FrameType | None) -> None:
        del number, frame
        request.save = True

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: terminate, signal.SIGUSR1: save}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup the terminal may go
        handlers[signal.SIGHUP] = terminate
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Agreement:
    """What was asked of any process, known to all of them one step later, so that no step waits for it.

    Every process calls ``after_step`` once a step and acts on what it returns: all save, or stop, at the same one.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: Any = None
        self._work: Any = None
        if world.size > 1:
            import torch.distributed as dist

            # a group of its own: these messages pass those of gradients
            self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=world.timeout))

    def after_step(self, request: Request) -> Request:
        """What all processes do now."""
        if self._world.size == 1:
            agreed = Request(stop=request.stop, save=request.save)
            request.save = False
            return agreed
        import torch
        import torch.distributed as dist

        agreed = self._answer()
        self._asked = torch.tensor([int(request.stop or 0), int(request.save)])
        request.save = False
        self._work = dist.all_reduce(self._asked, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def close(self) -> None:
        """Wait for the last message, so that none is under way when the processes part."""
        self._answer()

    def _answer(self) -> Request:
        if self._work is None:
            return Request()
        self._work.wait()
        self._work = None
        stop, save = (int(value) for value in self._asked)
        return Request(stop=Exit(stop) if stop else None, save=bool(save))
