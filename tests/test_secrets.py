"""No secret of the environment or of a mistyped command reaches a file, a log or the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import Reply, Request, fails, says, serving
from conftest import Outcome, TinyProject

SECRETS = {
    "OPENAI_API_KEY": "sk-canary-openai-8f2a6c1e",
    "MY_OWN_KEY": "sk-canary-own-77d0b3aa",
    "HF_TOKEN": "hf_canaryTokenQ9zR4tYx",
    "HUGGING_FACE_HUB_TOKEN": "hf_canaryOlderP3nW",
    "WANDB_API_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f0canary",
    "AWS_SECRET_ACCESS_KEY": "canary/aws/Zx81",
}


def files_with_secrets(root: Path) -> dict[str, str]:
    """Every file below ``root``, hidden ones and locks included, that holds a secret, and which."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found |= {str(path): name for name, secret in SECRETS.items() if secret.encode() in content}
    return found


def shown(said: Outcome) -> list[str]:
    return [name for name, secret in SECRETS.items() if secret in said.out + said.err]


@pytest.fixture
def secretive(project: TinyProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TinyProject]:
    """A project used by somebody whose environment is full of secrets."""
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    yield project
    assert files_with_secrets(tmp_path) == {}


def talkative(request: Request) -> Reply:
    """A server that repeats the key it was sent, in answers, refusals and errors."""
    key = request.headers["Authorization"]
    if "score" in request.text.casefold() or "rate" in request.text.casefold():
        return says(json.dumps({"score": 7, "reason": f"you sent {key}"}))
    return says(f"A person who holds {key}.")


@pytest.mark.parametrize("commands", ["first", pytest.param("all", marks=pytest.mark.slow)])
def test_no_file_of_a_project_and_no_message_holds_a_secret_of_the_environment(
    secretive: TinyProject, commands: str
) -> None:
    """Captions, and in the long run a judge too, come from a server that repeats the key."""
    with serving(talkative) as server:
        asked = secretive.configure(
            "caption.captioner=openai:m",
            f"caption.base_url={server.url}",
            "caption.api_key_env=MY_OWN_KEY",
            "evaluate.judge.model=openai:m",
            f"evaluate.judge.base_url={server.url}",
            "evaluate.metrics=[dino, judge]",
            "train.max_train_steps=2",
            "sample.images_per_identity=1",
            "train.report_to=[tensorboard]",
        )
        road = [("train", "-v"), ("sample",), ("evaluate", "-v"), ("report",)]
        road = road if commands == "all" else [("caption", "-v")]
        for words in (*road, ("status", "--json"), ("doctor",)):
            said = asked(*words, *(("--gpus", "none") if words[0] in ("train", "sample", "evaluate") else ()))
            assert said.status in (0, 4), said.err
            assert shown(said) == []
        assert any("sk-canary" in request.headers.get("Authorization", "") for request in server.requests)
    captions = (secretive.root / "artifacts" / "captions.jsonl").read_text()
    assert "[key]" in captions
    made = [secretive.root / name for name in ("report.html", "runs/pogdiff/config.resolved.yaml")]
    assert [path.is_file() for path in made] == [commands == "all"] * 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_an_error_of_a_server_that_repeats_the_key_shows_none(secretive: TinyProject, status: int) -> None:
    with serving(lambda request: fails(status, f"bad key {request.headers['Authorization']}")) as server:
        said = secretive(
            "caption", "-v", "--captioner", "openai:m", "--set", f"caption.base_url={server.url}",
            "--set", "caption.max_retries=0",
        )  # fmt: skip
    assert said.status != 0
    assert shown(said) == []


def test_a_failure_of_ours_with_its_traceback_shows_none(
    secretive: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback tells lines of code, never the values of variables."""
    from pogdiff_cli.models import endpoint

    def broken(self: endpoint.Endpoint, *rest: object) -> None:
        key = self._key
        raise RuntimeError(f"a mistake with a key of {len(key or '')} characters")

    monkeypatch.setattr(endpoint.Endpoint, "_once", broken)
    said = secretive("caption", "-v", "--captioner", "openai:m", "--set", "caption.max_retries=0")
    assert said.status == 1
    assert "Traceback" in said.err
    assert "a mistake with a key" in said.err
    assert shown(said) == []


def test_a_key_typed_in_place_of_its_variables_name_reaches_neither_a_file_nor_the_terminal(
    secretive: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = SECRETS["OPENAI_API_KEY"]
    for words in (
        ("caption", "--set", f"caption.api_key_env={key}"),
        ("evaluate", "--set", f"evaluate.judge.api_key_env={key}"),
    ):
        said = secretive(*words)
        assert said.status == 2
        assert shown(said) == []
    monkeypatch.setenv("POGDIFF_CAPTION__API_KEY_ENV", key)
    said = secretive("caption")
    assert said.status == 2
    assert shown(said) == []


def test_an_address_with_a_password_is_refused_and_not_shown(secretive: TinyProject) -> None:
    password = SECRETS["MY_OWN_KEY"]
    for address in (f"https://me:{password}@host/v1", f"https://host/v1?key={password}", f"https://{password}@host"):
        said = secretive("caption", "--set", f"caption.base_url={address}")
        assert said.status == 2
        assert shown(said) == []


def test_the_canaries_are_found_where_they_are(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text(f"x{SECRETS['HF_TOKEN']}y")
    assert list(files_with_secrets(tmp_path).values()) == ["HF_TOKEN"]
    assert "HF_TOKEN" not in os.environ or os.environ["HF_TOKEN"] != SECRETS["HF_TOKEN"]
