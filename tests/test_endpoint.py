"""The client of chat-completions endpoints against a scripted server."""

from __future__ import annotations

import datetime
import email.utils
import json
import socket
import time
from typing import Any

import pytest
from chat_server import ChatServer, Reply, Script, fails, says, serving

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.completions import ChatAnswer
from pogdiff_cli.models.endpoint import Endpoint, Message, seconds

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def endpoint(server: ChatServer | str, **changes: Any) -> Endpoint:
    url = server if isinstance(server, str) else server.url
    settings = {"model": "seer", "key_variable": "A_KEY", "timeout": 5.0, "retries": 3, **changes}
    return Endpoint(base_url=url, **settings)


def ask(server: ChatServer | str, **changes: Any) -> tuple[ChatAnswer, list[float]]:
    """The answer, and the seconds it was waited for (without waiting)."""
    waited: list[float] = []
    answer = endpoint(server, **changes).chat([Message(text="who?", pictures=(b"one", b"two"))], pause=waited.append)
    return answer, waited


def after(*first: Reply) -> Script:
    """The replies in turn, then an answer."""
    return lambda request: first[request.number] if request.number < len(first) else says("7")


def test_a_request_carries_model_pictures_options_and_key() -> None:
    with serving(after()) as server:
        answer, waited = ask(server, options={"temperature": 0.5})
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.pictures == [b"one", b"two"]
    assert request.text == "who?"
    assert {key: request.body[key] for key in ("model", "temperature")} == {"model": "seer", "temperature": 0.5}
    assert answer == ChatAnswer(text="7", model="scripted-1", prompt_tokens=12, completion_tokens=3)
    assert waited == []


def test_text_alone_is_a_plain_message_and_no_variable_means_no_key() -> None:
    with serving(after()) as server:
        talk = [Message(role="system", text="be brief"), Message(text="hello")]
        endpoint(server, key_variable=None).chat(talk)
    (request,) = server.requests
    assert request.body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]
    assert "Authorization" not in request.headers


def test_retry_after_in_seconds_is_waited_for() -> None:
    with serving(after(fails(429, headers={"Retry-After": "7"}))) as server:
        answer, waited = ask(server)
    assert answer.text == "7"
    assert 6.5 < waited[0] < 7.5


def test_retry_after_as_a_date_is_waited_for() -> None:
    then = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=30)
    stamp = email.utils.format_datetime(then, usegmt=True)
    with serving(after(fails(503, headers={"Retry-After": stamp}))) as server:
        _, waited = ask(server)
    assert 28 < waited[0] < 32


def test_what_one_thread_is_told_to_wait_the_others_wait_too() -> None:
    with serving(after(fails(429, headers={"Retry-After": "20"}))) as server:
        shared = endpoint(server)
        shared.chat([Message(text="a")], pause=lambda seconds: None)
        waited: list[float] = []
        shared.chat([Message(text="b")], pause=waited.append)
    assert len(waited) == 1
    assert 19 < waited[0] < 21.5


def test_retry_after_really_passes_before_the_next_attempt() -> None:
    with serving(after(fails(429, headers={"Retry-After": "1"}))) as server:
        endpoint(server).chat([Message(text="who?")])
    assert server.times[1] - server.times[0] >= 1.0


def test_a_server_that_asks_for_hours_is_not_waited_for() -> None:
    with serving(after(fails(429, headers={"Retry-After": "7200"}))) as server, pytest.raises(PogdiffError) as caught:
        ask(server)
    assert "120 minutes" in caught.value.message
    assert len(server.requests) == 1


@pytest.mark.parametrize("header", ["soon", "", "-3", "1.5.2"])
def test_a_retry_after_that_cannot_be_read_is_none(header: str) -> None:
    assert seconds(header) is None


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_passing_trouble_is_tried_again_with_growing_waits(status: int) -> None:
    with serving(after(fails(status), fails(status), fails(status))) as server:
        answer, waited = ask(server)
    assert answer.text == "7"
    for wait, longest in zip(waited, (0.5, 1.0, 2.0), strict=True):
        assert longest / 2 <= wait <= longest


def test_trouble_that_does_not_pass_ends_after_the_bound() -> None:
    with serving(lambda request: fails(500, "out of order")) as server, pytest.raises(PogdiffError) as caught:
        ask(server)
    assert len(server.requests) == 4
    assert "4 attempts: status 500, 'out of order'" in caught.value.message
    assert "what was answered is kept" in str(caught.value.hint)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"{not json"),
        Reply(body=b"[]"),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"choices": [{"message": {"content": 7}}]}'),
        Reply(body=b"[" * 100_000),
        Reply(body=b"<html>log in</html>"),
        says("half", close=True),
        Reply(body=b"", headers={"Content-Length": "-1"}, close=True),
    ],
    ids=["no json", "list", "no choice", "number", "nested", "page", "hangs up", "no length"],
)
def test_an_answer_that_did_not_arrive_whole_is_asked_for_again(reply: Reply) -> None:
    with serving(after(reply)) as server:
        answer, waited = ask(server)
    assert (answer.text, len(server.requests), len(waited)) == ("7", 2, 1)


def test_a_server_that_hangs_is_left_and_asked_again() -> None:
    with serving(after(says("late", hang=1.5))) as server:
        started = time.monotonic()
        answer, _ = ask(server, timeout=0.3)
    assert answer.text == "7"
    assert time.monotonic() - started < 4


def test_a_server_that_drips_holds_no_thread_for_ever() -> None:
    with serving(after(says("slow", drip=True))) as server:
        started = time.monotonic()
        answer, _ = ask(server, timeout=0.5)
    assert answer.text == "7"
    assert time.monotonic() - started < 4


def test_where_nobody_listens_it_is_tried_up_to_the_bound() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with pytest.raises(PogdiffError, match="4 attempts: no connection"):
        ask(url)


@pytest.mark.parametrize(
    ("status", "hint"),
    [(400, "options"), (401, "A_KEY"), (403, "may not use seer"), (404, "a model of"), (413, "size"), (302, "address")],
)
def test_what_asking_again_would_not_mend_is_an_error_at_once(status: int, hint: str) -> None:
    reply = fails(status, "because", headers={"Location": "/elsewhere"})
    with serving(lambda request: reply) as server, pytest.raises(PogdiffError) as caught:
        ask(server)
    assert len(server.requests) == 1
    assert caught.value.exit_code == Exit.USAGE
    assert f"status {status}, 'because'" in caught.value.message
    assert hint in str(caught.value.hint)


def test_an_empty_account_is_an_error_at_once() -> None:
    with (
        serving(lambda request: fails(429, "pay", code="insufficient_quota")) as server,
        pytest.raises(PogdiffError, match="no credit"),
    ):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        says("", message={"content": None, "refusal": "content_filter"}),
        says("", choice={"finish_reason": "content_filter"}),
        fails(400, "filtered", code="content_filter"),
    ],
    ids=["field", "finish", "status"],
)
def test_a_refusal_is_an_answer(reply: Reply) -> None:
    with serving(lambda request: reply) as server:
        answer, _ = ask(server)
    assert (answer.text, answer.refusal, len(server.requests)) == ("", "content_filter", 1)


def test_text_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "7"}, {"type": "text", "text": ".5"}]
    with serving(lambda request: says("", message={"content": parts})) as server:
        assert ask(server)[0].text == "7.5"


@pytest.mark.parametrize("status", [401, 400, 500])
def test_a_key_that_a_server_repeats_is_never_shown(status: int) -> None:
    # the key lies across the place where a long message is cut
    message = "x" * 290 + f" your key {KEY} is bad " + "y" * 300
    with serving(lambda request: fails(status, message)) as server, pytest.raises(PogdiffError) as caught:
        ask(server, retries=0)
    assert "sk-very" not in str(caught.value)
    with serving(lambda request: says(f"{KEY} 7", message={"refusal": KEY})) as server:
        assert KEY not in repr(ask(server)[0])


@pytest.mark.parametrize("bad", ["", "  ", "two words", "a\nb", "schlüssel"])
def test_a_variable_without_a_usable_key_is_refused_without_showing_it(
    bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", bad)
    with pytest.raises(PogdiffError, match="A_KEY") as caught:
        endpoint("http://127.0.0.1:9/v1")
    assert not bad.strip() or bad not in str(caught.value)


def test_a_proxy_of_the_environment_is_used_and_no_proxy_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(after()) as proxy, serving(after()) as server:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1").replace("http://", "http://me:word@"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        ask(server)
        assert (len(proxy.requests), len(server.requests)) == (0, 1)
        monkeypatch.setenv("no_proxy", "")
        ask("http://judge.invalid/v1")
    (request,) = proxy.requests
    assert request.path == "http://judge.invalid/v1/chat/completions"
    assert request.headers["proxy-authorization"].startswith("Basic ")


def test_a_server_of_another_turn_of_mind_gets_valid_json() -> None:
    with serving(after()) as server:
        endpoint(server).chat([Message(text="schön \u2028 \ud83d\ude00")])
    assert json.dumps(server.requests[0].body)
    assert server.requests[0].text == "schön \u2028 \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")
