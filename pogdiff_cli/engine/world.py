"""The processes of one command: who this one is, what they agree on, and how they wait for each other.

Between training steps they talk through torch's store and not through collectives: a collective has a time limit,
and one process may well scan a million images while the others wait. Each process sends a sign of life instead, and
who waits gives up when the one that is waited for has shown none for ``timeout`` seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pogdiff_cli.errors import Exit, PogdiffError

T = TypeVar("T")
LAUNCH_FOLDER = "POGDIFF_LAUNCH_FOLDER"  # set by our launcher for its workers
DEFAULT_TIMEOUT = 600.0
_POLL = 0.02
_PR_SET_PDEATHSIG = 1


class RankLostError(PogdiffError):
    """Another process of the command is gone or silent; a restart may mend it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of the ``size`` processes of a command this one is; ``local_rank`` counts on one machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


class World:
    """All processes of one command. Alone, every method is free and returns at once."""

    def __init__(self, place: Place | None = None, *, store: Any = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.place = place or Place()
        self.timeout = timeout
        self._store = store
        self._turn = 0
        self._by_itself = 0
        if store is not None:
            threading.Thread(target=self._live, daemon=True).start()

    @property
    def rank(self) -> int:
        """0 is the main process: it writes, records and speaks."""
        return self.place.rank

    @property
    def size(self) -> int:
        """How many processes take part in what is being done: one inside ``alone``."""
        return 1 if self._by_itself else self.place.size

    @property
    def main(self) -> bool:
        """True for the process that writes."""
        return self.place.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every ``size``-th item, from ``rank`` on: together the processes have each item once."""
        return items if self.size == 1 else items[self.rank :: self.size]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """What the main process does while the others wait: inside, there is nobody to agree with."""
        self._by_itself += 1
        try:
            yield
        finally:
            self._by_itself -= 1

    def agreed(self, work: Callable[[], T]) -> T:
        """The main process works, and all return what it returned (a JSON value; tuples become lists)."""
        if self.size == 1:
            return work()
        if self.main:
            with self.alone():
                value = work()
            self.say(value)
            return value
        return self.hear()  # type: ignore[no-any-return]

    def say(self, value: Any) -> None:
        """Tell the others a JSON value; they ``hear`` it in the order in which it was said."""
        if self.size > 1:
            self._store.set(self._next("said"), json.dumps(value))

    def hear(self) -> Any:
        """Wait for what the main process says next."""
        key = self._next("said")
        self._wait(lambda: self._store.check([key]), [0])
        return json.loads(self._store.get(key))

    def together(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            key = self._next("here")
            self._store.add(key, 1)
            others = [rank for rank in range(self.size) if rank != self.rank]
            self._wait(lambda: self._store.add(key, 0) >= self.size, others)

    def _next(self, what: str) -> str:
        self._turn += 1
        return f"{what}/{self._turn}"

    def _wait(self, ready: Callable[[], bool], for_ranks: Sequence[int]) -> None:
        signs = {rank: (-1, time.monotonic()) for rank in for_ranks}
        asked = time.monotonic()
        while not self._answered(ready):
            time.sleep(_POLL)
            now = time.monotonic()
            if now - asked < min(1.0, self.timeout / 4):
                continue
            asked = now
            for rank, (count, since) in signs.items():
                latest = int(self._store.add(f"alive/{rank}", 0))
                signs[rank] = (latest, now) if latest != count else (count, since)
                if latest == count and now - since > self.timeout:
                    raise RankLostError(
                        f"Process {rank} of {self.size} has shown no sign of life for {self.timeout:g} s.",
                        hint="Type the same command again; it goes on where it stopped.",
                    )

    def _answered(self, ready: Callable[[], bool]) -> bool:
        try:
            return ready()
        except RuntimeError as problem:  # the store lives in the main process or in the launcher
            raise RankLostError(
                "The process that leads this command is gone.",
                hint="Type the same command again; it goes on where it stopped.",
            ) from problem

    def _live(self) -> None:
        """Show that this process is alive, until it is not."""
        with contextlib.suppress(RuntimeError):  # the store has gone: so does this thread
            while True:
                self._store.add(f"alive/{self.rank}", 1)
                time.sleep(min(5.0, self.timeout / 8))


def place_from(environment: MutableMapping[str, str]) -> Place | None:
    """This process's place where torchrun, our launcher, Kubernetes or ``srun`` has given it one; else None.

    A Slurm step of several tasks is translated into torchrun's variables, in ``environment`` itself.
    """
    if "WORLD_SIZE" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        environment.update(_from_slurm(environment))
    if int(environment.get("WORLD_SIZE", "1")) < 2 and LAUNCH_FOLDER not in environment:
        return None
    try:
        return Place(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
        )
    except (KeyError, ValueError) as problem:
        raise PogdiffError(
            f"WORLD_SIZE is set, but {problem} is not there or no number.",
            hint="Start with torchrun, with srun, or with --gpus; or unset WORLD_SIZE.",
            exit_code=Exit.USAGE,
        ) from None


def join(place: Place, *, timeout: float, cuda: bool) -> World:
    """Meet the other processes (torch's default group: gloo for the CPU, nccl for GPUs)."""
    import torch.distributed as dist

    if place.size == 1:
        return World(place, timeout=timeout)
    _end_with_the_launcher()
    limit = datetime.timedelta(seconds=timeout)
    try:
        store, rank, size = next(iter(dist.rendezvous("env://", timeout=limit)))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=dist.PrefixStore("collectives", store),
            rank=rank,
            world_size=size,
            timeout=limit,
        )
    except (RuntimeError, ValueError, OSError) as problem:
        raise RankLostError(
            f"The {place.size} processes did not find each other: {problem}.",
            hint="Check MASTER_ADDR, MASTER_PORT or --rdzv-endpoint, and that all nodes were started.",
        ) from problem
    return World(place, store=dist.PrefixStore("pogdiff", store), timeout=timeout)


def _end_with_the_launcher() -> None:
    """Linux: a SIGTERM when the launcher dies, so that no worker outlives it."""
    if LAUNCH_FOLDER in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _from_slurm(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Torchrun's variables from those of a Slurm step."""
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    job = int(environment.get("SLURM_JOB_ID", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": environment.get("MASTER_ADDR", first_host(nodes)),
        "MASTER_PORT": environment.get("MASTER_PORT", str(20_000 + job % 20_000)),
    }


def first_host(nodes: str) -> str:
    """``gpu[07-09,12],cpu1`` -> ``gpu07``: the first machine of a Slurm node list."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0] or "localhost"
    first = rest.split("]")[0].split(",")[0].split("-")[0]
    suffix = rest.partition("]")[2].split(",")[0]
    return f"{head}{first}{suffix}"
