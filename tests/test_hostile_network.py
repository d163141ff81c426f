"""Nothing is asked for over a network without being told to, and a key goes nowhere but to its own address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_server import Reply, says, serving

from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.models.endpoint import Endpoint, Message

ROOT = Path(__file__).resolve().parents[1]

# every address is reached through this function; the hub is asked although the environment does not forbid it
_ASK = """
import json, os, socket, sys, time
from pathlib import Path
os.environ.pop("HF_HUB_OFFLINE", None)
os.environ["HF_HOME"] = sys.argv[1]
asked = []
def refuse(host, *rest, **more):
    asked.append(str(host))
    raise OSError("no network in this test")
socket.getaddrinfo = refuse
from pogdiff_cli.errors import PogdiffError
from pogdiff_cli.models.extractors import load_extractor
from pogdiff_cli.models.snapshots import refuse_without_weights
from pogdiff_cli.models.vision_language import load_vision_language
from pogdiff_cli.models.weights import resolve_pipeline
import transformers, huggingface_hub
said = {}
for name, look in {
    "base": lambda: resolve_pipeline("some/model", Path(sys.argv[1])),
    "extractor": lambda: load_extractor("hf:some/model@v1#cls"),
    "presence": lambda: refuse_without_weights("hf:some/model", "extractor"),
    "judge": lambda: load_vision_language("hf:some/model", "judge", "cpu"),
}.items():
    began = time.monotonic()
    try:
        look()
    except PogdiffError as problem:
        said[name] = [int(problem.exit_code), problem.hint, time.monotonic() - began]
    except Exception as problem:
        said[name] = [-1, repr(problem), time.monotonic() - began]
print(json.dumps([asked, said]))
"""


def test_nothing_that_is_missing_is_asked_for_over_the_network(tmp_path: Path) -> None:
    """Whatever the environment says: exit 4, the command that fetches, within 3 s, and no address is looked up."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", _ASK, tmp_path],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    asked, said = json.loads(done.stdout.splitlines()[-1])
    assert asked == []
    assert set(said) == {"base", "extractor", "presence", "judge"}
    for status, hint, seconds in said.values():
        assert status == 4
        assert "hf download some/model" in hint
        assert seconds < 3


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_with_the_key(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-" + "r" * 20)
    with serving(lambda request: says("caught")) as elsewhere:
        location = {"Location": f"{elsewhere.url}/chat/completions"}
        with serving(lambda request: Reply(status=status, headers=location)) as server:
            endpoint = Endpoint(base_url=server.url, model="m", key_variable="OPENAI_API_KEY", retries=0)
            with pytest.raises(PogdiffError, match=f"status {status}"):
                endpoint.chat([Message(text="hello")], pause=time.sleep)
            assert len(server.requests) == 1
        assert elsewhere.requests == []


def test_an_endless_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 8 MiB is no answer: memory is bounded whatever a server sends."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-" + "r" * 20)
    with serving(lambda request: says("x" * (9 * 2**20))) as server:
        endpoint = Endpoint(base_url=server.url, model="m", key_variable="OPENAI_API_KEY", retries=0)
        with pytest.raises(PogdiffError, match="gave no answer"):
            endpoint.chat([Message(text="hello")])
