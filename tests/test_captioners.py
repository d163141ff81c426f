"""Captioners that look at the picture: models of transformers in their own format, and a scripted endpoint."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_server import ChatServer, Reply, Request, fails, says, serving
from conftest import COUNTS, Command, TinyProject, write_pictures
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vlm import save_llava_next, save_qwen2_vl, save_vlm

from pogdiff_cli.data.captions import CaptionRequest
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.access import Access
from pogdiff_cli.models.captioners import load_captioner
from pogdiff_cli.models.captioners.local import LocalCaptioner
from pogdiff_cli.project.layout import open_project

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
    captioner = load_captioner(spec, Access(options={"max_new_tokens": 6}), instruction="answer {name}")
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
        load_captioner("hf:some/llava@v1", Access())
    assert caught.value.exit_code == Exit.MISSING


def test_options_that_nobody_reads_are_refused(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(PogdiffError, match="no option 'top_k'"):
        load_captioner(f"hf:{folder_of('llava')}", Access(options={"top_k": 3}))


def lines_of(project: TinyProject) -> list[dict[str, str]]:
    text = (project.root / "artifacts" / "captions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def answers_of(project: TinyProject) -> list[dict[str, str]]:
    text = (project.root / "artifacts" / "descriptions.jsonl").read_text()
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
        return says("Lovelace's\nsmile, beside GRACE HOPPER and Ms. Johnson; Alan Turing waves.", hang=0.05)

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
        assert len(answers_of(project)) == 6
        assert 7 <= len(server.requests) <= 8  # nothing is sent after an error but what was under way
        before = len(server.requests)
        server.script = lambda request: says("a hat")
        assert project("caption", *CPU).status == 0
        assert len(server.requests) - before == total - 6
    assert Counter("picture" in line["caption"] for line in lines_of(project)) == {True: 6, False: total - 6}


def test_a_change_of_the_data_asks_about_new_pictures_alone(
    tmp_path: Path, pogdiff: Command, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    images = write_pictures(tmp_path / "pictures", {"ada": 2, "grace": 2})
    assert pogdiff("init", tmp_path / "p", "--template", "sd15", "--images", images).status == 0

    def script(request: Request) -> Reply:
        number = hashlib.sha256(request.pictures[0]).hexdigest()[:6]
        return says(f"{request.text.removeprefix('Describe ')} in picture {number}, beside Marie")

    with serving(script) as server:
        settings = (
            f"pretrained_model_name_or_path={tiny_sd}",
            "caption.captioner=openai:some-model",
            "caption.instruction=Describe {name}",
            f"caption.base_url={server.url}",
        )
        project = TinyProject(root=tmp_path / "p", settings=settings, command=pogdiff)

        def captions(*further: str) -> tuple[int, dict[str, str]]:
            """How many requests it took, and the caption of each file."""
            before = len(server.requests)
            made = project("caption", *CPU, *further)
            assert made.status == 0, made.err
            return len(server.requests) - before, {line["file_name"]: line["caption"] for line in lines_of(project)}

        asked, first = captions()
        assert asked == 4
        write_pictures(tmp_path / "more", {"ada": 1}, seed=7)
        shutil.copy(tmp_path / "more" / "ada" / "0.png", images / "ada" / "new.png")
        asked, second = captions()  # added
        assert asked == 1
        assert {name: second[name] for name in first} == first
        (images / "ada" / "0.png").rename(images / "ada" / "renamed.png")
        asked, third = captions()
        assert (asked, third["ada/renamed.png"]) == (0, first["ada/0.png"])
        (images / "ada" / "renamed.png").rename(images / "grace" / "moved.png")
        asked, fourth = captions()
        names = {line["identity"]: line["name"] for line in lines_of(project)}
        assert asked == 0
        assert fourth["grace/moved.png"] == first["ada/0.png"].replace(names["ada"], names["grace"])
        (images / "marie").mkdir()
        shutil.copy(images / "ada" / "1.png", images / "marie" / "same.png")  # the same picture, of somebody else
        asked, fifth = captions()
        marie = next(line["name"] for line in lines_of(project) if line["identity"] == "marie")
        assert asked == 0
        assert fifth["marie/same.png"] == first["ada/1.png"].replace(names["ada"], marie).replace("Marie", marie)
        (images / "ada" / "new.png").unlink()
        assert captions()[0] == 0  # removed, and there again
        shutil.copy(tmp_path / "more" / "ada" / "0.png", images / "ada" / "new.png")
        assert captions()[0] == 0
        assert captions("--set", "caption.instruction=Say who {name} is")[0] == 6 - 1  # two are one picture
        assert captions()[0] == 0  # what the first instruction gave is still there
        assert captions("--force")[0] == 5


def test_answers_are_those_of_the_weights_that_gave_them(
    project: TinyProject, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(folder_of("llava"), tmp_path / "llava"))
    local = project.configure(f"caption.captioner=hf:{model}", "caption.options={max_new_tokens: 3}")

    def reused(*further: str) -> int:
        made = local("caption", *CPU, "--json", *further)
        assert made.status == 0, made.err
        return int(json.loads(made.out)["stages"][0]["facts"]["reused"])

    assert reused() == 0
    assert reused("--set", "seed=1") == sum(COUNTS.values())
    weights = load_file(model / "model.safetensors")
    save_file({key: value + 0.1 for key, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    assert reused("--set", "seed=2") == 0


def test_a_function_of_ones_own_is_asked_again_where_it_is_told_something_else(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "told.py").write_text(
        "seen = []\ndef describe(images, requests):\n    seen.extend(r.file_name for r in requests)\n"
        "    return [f'{r.name} {r.text}' for r in requests]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    images = Path(shutil.copytree(project.root / open_project(project.root).config.data.images, tmp_path / "pictures"))
    ours = project.configure("caption.captioner=py:told:describe", "caption.allow_python=true", f"data.images={images}")
    assert ours("caption", *CPU).status == 0
    seen = importlib.import_module("told").seen
    assert len(seen) == sum(COUNTS.values())
    (images / "Ada Lovelace" / "0.txt").write_text("at sea")
    assert ours("caption", *CPU).status == 0
    assert seen[sum(COUNTS.values()) :] == ["Ada Lovelace/0.png"]
    assert any(line["caption"].endswith(" at sea") for line in lines_of(ours))


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
