"""The only place that writes to the terminal: results on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pogdiff_cli.cli.inert import InertConsole, inert, inert_json
from pogdiff_cli.cli.surroundings import let_go
from pogdiff_cli.errors import PogdiffError

T = TypeVar("T")
_OUT, _ERR = 1, 2  # descriptors
_PLAIN_EVERY = 5.0  # seconds between progress lines where stderr is no terminal


class _Watched(InertConsole):
    """A console whose reader may leave: the command's work does not depend on who watches it."""

    def on_broken_pipe(self) -> None:
        """Go on in silence."""
        let_go(_ERR if self.stderr else _OUT)

    def print(self, *objects: Any, **options: Any) -> None:
        """Results that cannot be written are a failure; notes that cannot are not."""
        try:
            super().print(*objects, **options)
        except OSError as problem:
            self._buffer.clear()
            if self.stderr:
                let_go(_ERR)  # the terminal is gone
            else:
                raise _unwritable(problem) from problem


def _unwritable(problem: OSError) -> PogdiffError:
    let_go(_OUT)  # or the interpreter would try once more at its end
    return PogdiffError(
        f"Standard output cannot be written: {problem.strerror}.",
        hint="Send it elsewhere; what the command made is on the disk.",
    )


class Display:
    """What one command shows. ``verbosity``: -1 quiet, 0 normal, 1 with tracebacks."""

    def __init__(self, *, json_output: bool = False, verbosity: int = 0) -> None:
        self.json_output = json_output
        self.verbosity = verbosity
        self._err = _Watched(stderr=True, highlight=False)
        self._out = _Watched(highlight=False, soft_wrap=False)
        self._progress: Progress | None = None

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """A progress bar on a terminal, a line now and then elsewhere, nothing with -q."""
        if total == 0 or self.verbosity < 0:
            yield from items
        elif self._err.is_terminal:
            yield from self._bar(items, label, total)
        else:
            yield from self._lines(items, label, total)

    def say(self, message: str) -> None:
        """A note for whoever watches."""
        if self.verbosity >= 0:
            self._err.print(escape(message), style="dim", soft_wrap=True)

    def line(self, message: str) -> None:
        """One line of the result; left out with --json."""
        if not self.json_output and self.verbosity >= 0:
            self._out.print(message, soft_wrap=True)

    def emit(self, value: Mapping[str, Any]) -> None:
        """The whole result as JSON, with --json alone."""
        if self.json_output:
            self._write(inert_json(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)) + "\n")

    def text(self, content: str) -> None:
        """A whole document, for a file or another program."""
        self._write(inert(content))

    def refusal(self, message: str) -> None:
        """What the parser of the command line says is wrong with it."""
        with contextlib.suppress(OSError):  # nobody can be told
            sys.stderr.write(inert(message))
            sys.stderr.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; left out with --json. Columns after the first are aligned right."""
        if self.json_output or self.verbosity < 0:
            return
        table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(escape(column), justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self._out.print(table)

    def error(self, problem: PogdiffError) -> None:
        """What is wrong, and what to do next."""
        self._err.print(f"[bold red]Error:[/] {escape(problem.message)}", soft_wrap=True)
        if problem.hint:
            self._err.print(f"  {escape(problem.hint)}", soft_wrap=True)

    def crash(self, problem: BaseException) -> None:
        """A mistake of ours."""
        if self.verbosity > 0:
            self._err.print_exception()
            return
        text = f"{type(problem).__name__}: {problem}"
        self._err.print(f"[bold red]Internal error:[/] {escape(text)}", soft_wrap=True)
        self._err.print("  This is a mistake in pogdiff. Type the command with -v for the traceback, and report it.")

    def close(self) -> None:
        """Take the progress bars away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            let_go(_OUT)
        except OSError as problem:
            raise _unwritable(problem) from problem

    def _bar(self, items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            times = (TimeElapsedColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, *times, console=self._err, transient=True)
            self._progress.start()
        progress = self._progress
        task = progress.add_task(escape(label), total=total)
        try:
            for item in items:
                yield item
                progress.advance(task)
        finally:
            progress.remove_task(task)
            if not progress.tasks:
                self.close()

    def _lines(self, items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
        started = shown = time.monotonic()
        for number, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - shown >= _PLAIN_EVERY:
                shown = now
                self._err.print(_progress_line(label, number, total, now - started), soft_wrap=True)


def _progress_line(label: str, done: int, total: int | None, seconds: float) -> str:
    each = seconds / done
    if total is None:
        return f"{escape(label)}: {done}, {each:.3g} s each"
    left = each * (total - done)
    return f"{escape(label)}: {done}/{total} ({done / total:.0%}), {each:.3g} s each, {duration(left)} left"


def duration(seconds: float) -> str:
    """``2 h 3 min``, ``3 min 4 s`` or ``5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
