"""A client of OpenAI-compatible chat-completions endpoints: messages with pictures in, text and token counts out.

An answer that arrived whole is returned. Everything else is either asked again (no connection, no answer in time, a
garbled one, status 408, 409, 425, 429 and 5xx), up to a bound, or is an error at once with what to do about it.
"""

from __future__ import annotations

import base64
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.util import Retry, make_headers, parse_url

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.completions import ChatAnswer, cannot_be_paid, error_text, read_answer, refused_as

Pause = Callable[[float], None]

_FIRST_WAIT = 0.5  # seconds; doubled with each further attempt
_LAST_WAIT = 60.0
_LONGEST_WAIT = 900.0  # a server that asks for more ends the command: what was answered is kept
_LARGEST_ANSWER = 8 * 1024**2
_CHARACTERS_SHOWN = 300
_AGAIN = frozenset({408, 409, 425, 429})
_HINTS = {
    400: "The model may not take pictures, or not one of the options.",
    401: "Does {variable} hold the key of {base_url}?",
    403: "This key may not use {model} at {base_url}.",
    404: "Is {model} a model of {base_url}?",
    413: "The server takes no pictures of this size.",
}


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation; pictures are PNG files and follow the text."""

    text: str
    pictures: tuple[bytes, ...] = ()
    role: Literal["system", "user", "assistant"] = "user"

    def to_json(self) -> dict[str, Any]:
        """As the protocol writes it, pictures as data URLs."""
        if not self.pictures:
            return {"role": self.role, "content": self.text}
        urls = [f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}" for data in self.pictures]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return {"role": self.role, "content": [{"type": "text", "text": self.text}, *parts]}


@dataclass(frozen=True, kw_only=True)
class _Trouble:
    """Why there is no answer yet, and how long the server asks to wait."""

    reason: str
    retry_after: float | None = None


class Endpoint:
    """One model behind one address. Threads may share it.

    Args:
        base_url: what comes before ``/chat/completions``.
        model: the model's name there.
        key_variable: the environment variable that holds the key; None where the server wants none.
        options: further fields of each request, such as ``temperature``.
        timeout: seconds without a byte of the answer, and seconds for the whole of it once it has begun.
        retries: how often a request is sent again.
        connections: how many threads will share this.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        key_variable: str | None,
        options: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
        retries: int = 8,
        connections: int = 4,
    ) -> None:
        self._base_url, self._model, self._variable = base_url.rstrip("/"), model, key_variable
        self._options = dict(options or {})
        self._key = read_key(key_variable) if key_variable else None
        self._timeout, self._attempts = timeout, retries + 1
        self._pool = _pool(self._base_url, connections)
        self._jitter = random.Random()  # noqa: S311 - spreads waiting, decides nothing
        self._resume_at = 0.0  # no thread sends before: what one is told to wait, all wait
        self._lock = threading.Lock()

    def chat(self, messages: Sequence[Message], *, pause: Pause = time.sleep) -> ChatAnswer:
        """The model's answer; ``pause(seconds)`` is how it waits, and may raise to give up."""
        body = {"model": self._model, "messages": [message.to_json() for message in messages], **self._options}
        data = json.dumps(body).encode()
        trouble = _Trouble(reason="not sent")
        for attempt in range(self._attempts):
            self._wait_for_turn(pause)
            outcome = self._once(data)
            if isinstance(outcome, ChatAnswer):
                return outcome
            trouble = outcome
            if attempt + 1 < self._attempts:
                self._back_off(attempt, trouble, pause)
        raise PogdiffError(
            f"{self._base_url} gave no answer in {self._attempts} attempts: {trouble.reason}.",
            hint="Type the same command again later; what was answered is kept.",
        )

    def _once(self, data: bytes) -> ChatAnswer | _Trouble:
        try:
            response = self._pool.request(
                "POST",
                f"{self._base_url}/chat/completions",
                body=data,
                headers=self._headers(),
                timeout=urllib3.Timeout(connect=min(self._timeout, 20.0), read=self._timeout),
                retries=False,  # neither sent again nor redirected: the key goes nowhere else
                redirect=False,
                preload_content=False,
            )
            body = _read(response, self._timeout)
        except urllib3.exceptions.SSLError as error:
            raise PogdiffError(self._clean(f"No secure connection to {self._base_url}: {error}")) from None
        except urllib3.exceptions.NewConnectionError as error:  # which urllib3 counts among the timeouts
            return _Trouble(reason=f"no connection ({type(error).__name__})")
        except urllib3.exceptions.TimeoutError:
            return _Trouble(reason=f"nothing within {self._timeout:g} s")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return _Trouble(reason=self._clean(f"the connection failed ({type(error).__name__})"))
        return self._understood(response.status, response.headers.get("Retry-After"), body)

    def _understood(self, status: int, retry_after: str | None, body: bytes) -> ChatAnswer | _Trouble:
        if status == 200:
            answer = read_answer(body, self._clean)
            return answer or _Trouble(reason="what came is no chat completion")
        said = self._clean(error_text(body))[:_CHARACTERS_SHOWN]
        reason = f"status {status}" + (f", {said!r}" if said else "")
        if cannot_be_paid(status, body):
            raise PogdiffError(f"{self._base_url}: {reason}.", hint="This account has no credit left.")
        if status in _AGAIN or status >= 500:
            return _Trouble(reason=reason, retry_after=seconds(retry_after))
        if refusal := refused_as(status, body):
            return ChatAnswer(text="", refusal=refusal)
        hint = _HINTS.get(status, "Is {base_url} the address before /chat/completions?")
        hint = hint.format(variable=self._variable or "no variable", base_url=self._base_url, model=self._model)
        raise PogdiffError(f"{self._base_url} refused the request: {reason}.", hint=hint, exit_code=Exit.USAGE)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": "pogdiff"}
        return headers if self._key is None else {**headers, "Authorization": f"Bearer {self._key}"}

    def _back_off(self, attempt: int, trouble: _Trouble, pause: Pause) -> None:
        """Retry-After where the server gave one, else a random part of 0.5, 1, 2, 4 ... 60 s."""
        if trouble.retry_after is None:
            pause(min(_LAST_WAIT, _FIRST_WAIT * 2.0**attempt) * self._jitter.uniform(0.5, 1.0))
            return
        if trouble.retry_after > _LONGEST_WAIT:
            raise PogdiffError(
                f"{self._base_url} asks to wait {trouble.retry_after / 60:.0f} minutes ({trouble.reason}).",
                hint="Type the same command again then; what was answered is kept.",
            )
        with self._lock:
            self._resume_at = max(self._resume_at, time.monotonic() + trouble.retry_after)
        self._wait_for_turn(pause)

    def _wait_for_turn(self, pause: Pause) -> None:
        left = self._resume_at - time.monotonic()
        if left > 0:
            pause(left * self._jitter.uniform(1.0, 1.05))  # not all threads at once

    def _clean(self, text: str) -> str:
        """Whatever a server says, without the key: some repeat it."""
        return text.replace(self._key, "[key]") if self._key else text


def read_key(variable: str) -> str:
    """The key in an environment variable; it is never written, and never part of a message."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise PogdiffError(
            f"The environment variable {variable} holds no key.",
            hint=f"Type: export {variable}=...   A server that wants none: set api_key_env to null.",
            exit_code=Exit.MISSING,
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise PogdiffError(
            f"What the environment variable {variable} holds is no key: it has other than printable characters.",
            exit_code=Exit.USAGE,
        )
    return key


def seconds(retry_after: str | None) -> float | None:
    """Retry-After, as seconds or as an HTTP date; None where there is none or it cannot be read."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(Retry(0).parse_retry_after(retry_after)))
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


def _pool(base_url: str, connections: int) -> urllib3.PoolManager:
    """Connections that are kept, through the proxy that the environment names for this host, if any."""
    parts = urlsplit(base_url)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.hostname or ""):
        return urllib3.PoolManager(maxsize=connections)
    auth = parse_url(proxy).auth
    headers = make_headers(proxy_basic_auth=auth) if auth else None
    return urllib3.ProxyManager(proxy, maxsize=connections, proxy_headers=headers)


def _read(response: urllib3.BaseHTTPResponse, timeout: float) -> bytes:
    """The whole body; a server that sends a byte now and then does not hold a thread for ever."""
    deadline = time.monotonic() + timeout
    body = bytearray()
    while chunk := response.read1(1 << 16):  # type: ignore[attr-defined]
        body += chunk
        if time.monotonic() > deadline or len(body) > _LARGEST_ANSWER:
            response.close()
            raise urllib3.exceptions.ProtocolError("too slow or too long")
    response.release_conn()
    return bytes(body)
