"""The one exception that a user sees: what is wrong, what to do next, and the exit status."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses of the command line (docs/commands.md lists them)."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    DATA = 3
    MISSING = 4
    MEMORY = 5
    NON_FINITE = 6
    GATE = 7
    LOCKED = 75
    HANGUP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class PogdiffError(Exception):
    """A failure that the user can act on: ``message`` says what is wrong, ``hint`` what to do next."""

    def __init__(self, message: str, *, hint: str | None = None, exit_code: Exit = Exit.FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class Stopped(BaseException):
    """A signal ended the work; ``exit_code`` is 128 and its number.

    ``step``: the training step at whose end it stopped, with a safe checkpoint on disk; None in other work.
    """

    def __init__(self, exit_code: Exit, step: int | None = None) -> None:
        super().__init__("stopped" if step is None else f"stopped at step {step}")
        self.exit_code = exit_code
        self.step = step
