"""A chat-completions server on loopback that says what its script says, and keeps every request."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[["Request"], "Reply"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it came."""

    number: int  # 0, 1, 2 ...
    attempt: int  # how often the same body came before
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The text of the only message."""
        content = self.body["messages"][0]["content"]
        return content if isinstance(content, str) else content[0]["text"]

    @property
    def pictures(self) -> list[bytes]:
        """The pictures of the only message."""
        parts = [part for part in self.body["messages"][0]["content"] if part["type"] == "image_url"]
        urls = [part["image_url"]["url"] for part in parts]
        assert all(url.startswith("data:image/png;base64,") for url in urls)
        return [base64.b64decode(url.partition(",")[2]) for url in urls]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server does about one."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0.0  # seconds before it answers
    close: bool = False  # hang up in the middle of the body
    drip: bool = False  # a byte every tenth of a second


def says(text: str, **fields: Any) -> Reply:
    """A chat completion."""
    message = {"role": "assistant", "content": text, **fields.pop("message", {})}
    body = {
        "id": "x",
        "model": "scripted-1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message} | fields.pop("choice", {})],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3},
    }
    return Reply(body=json.dumps(body).encode(), **fields)


def fails(status: int, message: str = "no", code: str | None = None, **fields: Any) -> Reply:
    """An error as these servers write it."""
    return Reply(status=status, body=json.dumps({"error": {"message": message, "code": code}}).encode(), **fields)


class ChatServer:
    """The running server: its address, and what it was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.times: list[float] = []
        self.paid: Counter[str] = Counter()  # answers sent in full, by digest of the request
        self.busy = self.busiest = 0
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _note(self, path: str, headers: dict[str, str], data: bytes) -> tuple[Request, str]:
        digest = hashlib.sha256(data).hexdigest()
        with self._lock:
            request = Request(
                number=len(self.requests),
                attempt=self._seen[digest],
                path=path,
                headers=headers,
                body=json.loads(data),
            )
            self._seen[digest] += 1
            self.requests.append(request)
            self.times.append(time.monotonic())
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        return request, digest

    def _handler(self) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - the class that the library wants
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                request, digest = server._note(self.path, dict(self.headers), data)
                try:
                    with contextlib.suppress(OSError):  # the client may be gone
                        self._send(server.script(request), digest)
                finally:
                    with server._lock:
                        server.busy -= 1

            def _send(self, reply: Reply, digest: str) -> None:
                time.sleep(reply.hang)
                if reply.status == 200 and not reply.close:
                    with server._lock:
                        server.paid[digest] += 1
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if reply.drip:
                    for byte in reply.body:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(0.1)
                    return
                self.wfile.write(reply.body[: len(reply.body) // 2] if reply.close else reply.body)
                if reply.close:
                    self.close_connection = True

            def log_message(self, format: str, *arguments: Any) -> None:
                del format, arguments

        return Handler


@contextlib.contextmanager
def serving(script: Script) -> Iterator[ChatServer]:
    """A server for the time of a test."""
    server = ChatServer(script)
    try:
        yield server
    finally:
        server.close()
