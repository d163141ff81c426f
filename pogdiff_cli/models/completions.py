"""What a chat-completions server sends back: an answer, a refusal, an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_FILTERED = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """What the model said; ``refusal`` is what it or a filter said instead of an answer."""

    text: str
    refusal: str | None = None
    model: str | None = None  # as the server names it, with its version
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def read_answer(body: bytes, clean: Callable[[str], str]) -> ChatAnswer | None:
    """A chat completion, each string through ``clean``; None where the body is something else."""
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message = choice["message"]
        text, refusal = _text(message.get("content")), message.get("refusal")
        usage, model = reply.get("usage") or {}, reply.get("model")
        counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not refusal and choice.get("finish_reason") == "content_filter":
        refusal = "content_filter"
    return ChatAnswer(
        text=clean(text),
        refusal=clean(str(refusal)) if refusal else None,
        model=clean(model) if isinstance(model, str) else None,
        prompt_tokens=counts[0] if isinstance(counts[0], int) else None,
        completion_tokens=counts[1] if isinstance(counts[1], int) else None,
    )


def refused_as(status: int, body: bytes) -> str | None:
    """The filter that refused a question by an error status, None where the error is another one."""
    error = _error(body)
    codes = [str(error.get(key)) for key in ("code", "type")]
    return next((code for code in codes if code in _FILTERED), None) if status in (400, 403, 422) else None


def cannot_be_paid(status: int, body: bytes) -> bool:
    """Whether 429 means an empty account, which waiting does not fill."""
    return status in (402, 429) and (status == 402 or _error(body).get("code") == "insufficient_quota")


def error_text(body: bytes) -> str:
    """What a server says is wrong, in one line; nothing where it sends a page."""
    return " ".join(str(_error(body).get("message") or "").split())


def _text(content: Any) -> str:
    """The text of a message: a string, nothing, or parts of which some are text."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError("a message's content is text")


def _error(body: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = reply.get("error", reply) if isinstance(reply, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}
