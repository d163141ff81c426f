"""Captioners that look at the picture: models of transformers in their own format, and a scripted endpoint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_server import ChatServer, Reply, Request, fails, says, serving
from conftest import COUNTS, TinyProject
from PIL import Image
from tiny_vlm import save_llava_next, save_qwen2_vl, save_vlm

from pogdiff_cli.data.captions import CaptionRequest
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.captioners import load_captioner
from pogdiff_cli.models.captioners.local import LocalCaptioner

KEY = "sk-test-0123456789"
CPU = ("--gpus", "none")
COLOURS = ("red", "white", "black", "blue", "yellow", "green")
SAVE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "llava": (save_vlm, "LlavaForConditionalGeneration"),
    "llava_next": (save_llava_next, "LlavaNextForConditionalGeneration"),
    "qwen2_vl": (save_qwen2_vl, "Qwen2VLForConditionalGeneration"),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = SAVE[name][0](tmp_path_factory.mktemp(name))
        return made[name]

    return folder


def request(name: str = "1") -> CaptionRequest:
    return CaptionRequest(file_name="1.png", identity="Ada Lovelace", name=name, text="", attributes={})


@pytest.mark.parametrize("kind", list(SAVE))
def test_a_model_describes_a_batch_as_it_describes_each_picture(kind: str, folder_of: Callable[[str], Path]) -> None:
    spec = f"hf:{folder_of(kind)}"
    captioner = load_captioner(spec, instruction="answer {name}", options={"max_new_tokens": 6})
    assert isinstance(captioner, LocalCaptioner)
    assert type(captioner.model.model).__name__ == SAVE[kind][1]
    pictures = [Image.new("RGB", (40 + 8 * i, 60), colour) for i, colour in enumerate(COLOURS)]
    requests = [request("1" if i % 2 else "2 / 3") for i in range(len(pictures))]  # prompts of two lengths
    alone = [captioner.describe([p], [r])[0] for p, r in zip(pictures, requests, strict=True)]
    assert captioner.describe(pictures, requests) == alone
    assert all(alone)
    assert len(set(alone)) > 1
    assert all(len(caption.split()) <= 6 for caption in alone)


def test_a_model_that_is_not_there_names_the_command_that_fetches_it() -> None:
    with pytest.raises(PogdiffError, match=r"captioner some/llava .* hf download some/llava --revision v1") as caught:
        load_captioner("hf:some/llava@v1")
    assert caught.value.exit_code == Exit.MISSING


def test_options_that_nobody_reads_are_refused(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(PogdiffError, match="no option 'top_k'"):
        load_captioner(f"hf:{folder_of('llava')}", options={"top_k": 3})


def lines_of(project: TinyProject) -> list[dict[str, str]]:
    text = (project.root / "artifacts" / "captions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def hosted(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> Callable[[ChatServer], TinyProject]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def configured(server: ChatServer) -> TinyProject:
        return project.configure(
            "caption.captioner=openai:some-model",
            f"caption.base_url={server.url}",
            "caption.options={max_tokens: 40}",
            "caption.batch_size=2",
            "caption.concurrency=2",
        )

    return configured


def test_an_endpoint_sees_each_picture_once_and_no_real_name_comes_back(
    hosted: Callable[[ChatServer], TinyProject],
) -> None:
    def script(request: Request) -> Reply:
        return says("Lovelace's\nsmile, beside GRACE HOPPER and Ms. Johnson; Alan Turing waves.")

    with serving(script) as server:
        project = hosted(server).configure("caption.instruction=Describe {name}. \\ Name nobody else.")
        made = project("caption", *CPU)
        assert made.status == 0, made.err
        assert len(server.requests) == sum(COUNTS.values())
        assert server.busiest == 2
        bodies = [r.body for r in server.requests]
        assert {(b["model"], b["max_tokens"]) for b in bodies} == {("some-model", 40)}
        assert all(len(r.pictures) == 1 and r.pictures[0].startswith(b"\x89PNG") for r in server.requests)
        assert len({r.pictures[0] for r in server.requests}) == sum(COUNTS.values())
        assert "up to date" in project("caption", *CPU).out
        assert len(server.requests) == sum(COUNTS.values())
    names = {line["identity"]: line["name"] for line in lines_of(project)}
    asked = Counter(r.text for r in server.requests)
    assert asked == {f"Describe {names[who]}. \\ Name nobody else.": count for who, count in COUNTS.items()}
    ada, grace, alan = names["Ada Lovelace"], names["Grace Hopper"], names["Alan Turing"]
    # "Johnson" and "Lovelace" are nobody else's surnames
    told = f"{ada}'s smile, beside {grace.upper()} and Ms. {names['Katherine Johnson']}; {alan} waves."
    assert {line["caption"] for line in lines_of(project)} == {told}
    written = [path.read_bytes() for path in project.root.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in written)
    assert KEY not in made.out + made.err


def test_what_was_described_is_not_asked_again_after_a_failure(hosted: Callable[[ChatServer], TinyProject]) -> None:
    total = sum(COUNTS.values())

    def script(request: Request) -> Reply:
        return says(f"picture {request.number}") if request.number < 6 else fails(401, "bad key")

    with serving(script) as server:
        project = hosted(server)
        failed = project("caption", *CPU)
        assert failed.status == Exit.USAGE
        assert "OPENAI_API_KEY" in failed.err
        assert KEY not in failed.err
        assert len(lines_of(project)) == 6
        assert 7 <= len(server.requests) <= 8  # nothing is sent after an error but what was under way
        before = len(server.requests)
        server.script = lambda request: says("a hat")
        assert project("caption", *CPU).status == 0
        assert len(server.requests) - before == total - 6
    assert Counter("picture" in line["caption"] for line in lines_of(project)) == {True: 6, False: total - 6}


def test_a_refusal_is_no_caption_and_is_counted(hosted: Callable[[ChatServer], TinyProject]) -> None:
    def script(request: Request) -> Reply:
        refused = request.number in (0, 3)
        return says("", message={"refusal": "I cannot."}) if refused else says("a person in a hat")

    with serving(script) as server:
        project = hosted(server)
        made = project("caption", *CPU)
    assert made.status == 0, made.err
    assert "2 pictures were not described" in made.err
    alone = [line for line in lines_of(project) if line["caption"] == line["name"]]
    assert len(alone) == 2
    others = [line for line in lines_of(project) if line not in alone]
    assert all(line["caption"] == f"{line['name']}, a person in a hat" for line in others)


def test_a_key_that_is_not_there_is_said_before_anything_is_asked(
    hosted: Callable[[ChatServer], TinyProject], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(lambda request: says("x")) as server:
        refused = hosted(server)("caption", *CPU)
        assert refused.status == Exit.MISSING
        assert "OPENAI_API_KEY" in refused.err
        assert server.requests == []


def test_a_local_model_captions_a_project(project: TinyProject, folder_of: Callable[[str], Path]) -> None:
    local = project.configure(
        f"caption.captioner=hf:{folder_of('llava')}",
        "caption.instruction=answer",
        "caption.options={max_new_tokens: 3}",
    )
    made = local("caption", *CPU, "--json")
    assert made.status == 0, made.err
    assert json.loads(made.out)["stages"][0]["facts"]["captions"] == sum(COUNTS.values())
    for line in lines_of(local):
        name, _, words = line["caption"].partition(", ")
        assert name == line["name"]
        assert 1 <= len(words.split()) <= 3
    # wordings are the template's own; the instruction is the model's
    assert "up to date" in local.configure('caption.prompts=["{name}"]')("caption", *CPU).out
    assert "instruction" in local.configure("caption.instruction=other")("caption", *CPU, "--dry-run").out
