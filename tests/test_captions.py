"""Wordings, the place of the name, and the file of captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TinyProject
from PIL import Image

from pogdiff_cli.data.captions import (
    Caption,
    CaptionRequest,
    check_prompts,
    ensure_name,
    file_captions,
    read_captions,
    render,
    template_captions,
    write_captions,
)
from pogdiff_cli.data.descriptions import Description, key_of, read_descriptions
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.models.access import Access
from pogdiff_cli.models.captioners import load_captioner
from pogdiff_cli.project.line_log import LineWriter

OURS = Access(allow_python=True)
PROMPTS = ["a photo of {name}", "{name}, {pose}", "a portrait of {name}", "{name} {pose}, {mouth}"]


def request(number: int = 0, identity: str = "s1", **attributes: str) -> CaptionRequest:
    return CaptionRequest(
        file_name=f"{identity}/{number:02}.png",
        identity=identity,
        name="Lukas",
        text="",
        attributes=attributes,
    )


def words(text: str) -> int:
    return len(text.split())


def test_placeholders_are_filled_with_the_name_and_the_attributes() -> None:
    caption = render(["{name} {{looking}} {pose}"], request(pose="left {name}"), seed=0, index=0)
    assert caption == "Lukas {looking} left {name}"


def test_a_prompt_whose_attribute_is_missing_is_no_candidate() -> None:
    captions = {render(PROMPTS, request(pose=""), seed=0, index=index) for index in range(8)}
    assert captions == {"a photo of Lukas", "a portrait of Lukas"}


def test_photos_of_one_identity_share_a_wording_only_when_prompts_run_out() -> None:
    requests = [request(number, identity, pose="left", mouth="open") for identity in ("a", "b") for number in range(8)]
    captions = template_captions(PROMPTS, requests, seed=3)
    for person in (captions[:8], captions[8:]):
        assert len(set(person[:4])) == 4
        assert person[:4] == person[4:]


def test_identities_begin_with_different_wordings() -> None:
    firsts = {render(PROMPTS, request(0, f"s{n}", pose="x", mouth="y"), seed=0, index=0) for n in range(30)}
    assert len(firsts) == len(PROMPTS)


def test_captions_do_not_depend_on_the_order_of_the_requests() -> None:
    requests = [request(number, pose="left", mouth="open") for number in range(6)]
    forwards = template_captions(PROMPTS, requests, seed=1)
    assert template_captions(PROMPTS, requests[::-1], seed=1)[::-1] == forwards


def test_an_image_that_no_prompt_fits_is_named() -> None:
    with pytest.raises(PogdiffError, match=r"s1/00\.png"):
        render(["{name}, {pose}"], request(), seed=0, index=0)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a photo", "lacks {name}"),
        ("{name} {posse}", "Did you mean {pose}"),
        ("{name.__class__}", "no plain name"),
        ("{name[0]}", "no plain name"),
        ("{name!r}", "no plain name"),
        ("{name:>99999999}", "no plain name"),
        ("{}", "no plain name"),
        ("{name", "cannot be read"),
    ],
)
def test_a_prompt_that_cannot_be_filled_is_refused_before_anything_is_written(prompt: str, message: str) -> None:
    with pytest.raises(PogdiffError, match=message) as caught:
        check_prompts(["{name}", prompt], ["pose"])
    assert caught.value.exit_code == Exit.USAGE


def test_good_prompts_pass_and_none_at_all_do_not() -> None:
    check_prompts(PROMPTS, ["pose", "mouth"])
    with pytest.raises(PogdiffError, match="empty"):
        check_prompts([], [])


def test_a_caption_keeps_its_wording_when_the_name_is_within_the_limit() -> None:
    assert ensure_name("a photo of LUKAS at sea", "Lukas", words, 4) == "a photo of LUKAS at sea"


def test_a_name_beyond_the_limit_or_absent_is_put_in_front() -> None:
    assert ensure_name("a photo of Lukas", "Lukas", words, 3) == "Lukas, a photo of Lukas"
    assert ensure_name("a photo of Lukasz", "Lukas", words, 9) == "Lukas, a photo of Lukasz"
    assert ensure_name("", "Lukas", words, 9) == "Lukas"


def test_a_name_longer_than_the_limit_is_an_error() -> None:
    with pytest.raises(PogdiffError, match="alone exceeds"):
        ensure_name("x", "Lukas Novak", words, 1)


def test_the_users_own_captions_are_taken_and_a_missing_one_is_named() -> None:
    own = CaptionRequest(file_name="a.png", identity="a", name="Lukas", text="Lukas at sea", attributes={})
    assert file_captions([own]) == ["Lukas at sea"]
    with pytest.raises(PogdiffError, match=r"s1/00\.png has no caption"):
        file_captions([own, request()])


def caption(number: int, text: str = 'é\u2028 "quoted"') -> Caption:
    return Caption(file_name=f"{number}.png", identity="s1", name="Lukas", caption=text, captioner="template")


def test_captions_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "artifacts" / "captions.jsonl"
    assert read_captions(path) == {}
    write_captions(path, [caption(0), caption(1)])
    assert read_captions(path) == {"0.png": caption(0), "1.png": caption(1)}
    fields = ("file_name", "identity", "name", "caption", "captioner")
    assert set(json.loads(path.read_bytes().split(b"\n")[0])) == set(fields)
    write_captions(path, [caption(1, "again")])
    assert read_captions(path) == {"1.png": caption(1, "again")}


def description(number: int, text: str = 'é\u2028 "quoted"\ud800') -> Description:
    key = key_of(image=f"{number}", question="q")
    return Description(key=key, image=f"{number}", captioner="openai:x", name="Lukas", text=text)


def test_the_last_answer_about_a_picture_counts(tmp_path: Path) -> None:
    path = tmp_path / "artifacts" / "descriptions.jsonl"
    assert read_descriptions(path) == {}
    with LineWriter(path) as log:
        log.append(description(0), description(1))
    with LineWriter(path) as log:
        log.append(description(1, "again"))
    found = read_descriptions(path)
    assert [found[description(n).key] for n in (0, 1)] == [description(0), description(1, "again")]


def test_a_picture_and_a_question_are_both_part_of_the_key() -> None:
    assert len({key_of(image=image, question=question) for image in "ab" for question in "ab"}) == 4


def test_an_answer_torn_at_any_byte_is_ignored_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "descriptions.jsonl"
    with LineWriter(path) as log:
        log.append(description(0), description(1))
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for cut in range(second, len(whole)):
        path.write_bytes(whole[:cut])
        assert set(read_descriptions(path)) == {description(0).key}
        with LineWriter(path) as log:
            log.append(description(1))
        assert path.read_bytes() == whole


def test_a_bad_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    write_captions(path, [caption(0)])
    good = path.read_bytes()
    for bad in (b"{\n", b'{"file_name": "x"}\n', b"[]\n", b"\xff\n"):
        path.write_bytes(good + bad + good)
        with pytest.raises(PogdiffError, match=r"captions\.jsonl:2") as caught:
            read_captions(path)
        assert caught.value.exit_code == Exit.DATA


def test_a_captioner_of_ones_own_runs_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_captioner.py").write_text(
        "def describe(images, requests):\n"
        "    return [f'{r.name}  {i.width}\\npx' for i, r in zip(images, requests)]\n"
        "def short(images, requests):\n    return []\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PogdiffError, match="would run Python code"):
        load_captioner("py:my_captioner:describe", Access())
    captioner = load_captioner("py:my_captioner:describe", OURS)
    assert captioner.name == "py:my_captioner:describe"
    assert captioner.describe([Image.new("RGB", (7, 5))], [request()]) == ["Lukas 7 px"]
    with pytest.raises(PogdiffError, match="one string a picture"):
        load_captioner("py:my_captioner:short", OURS).describe([Image.new("RGB", (7, 5))], [request()])
    for spec, code in (
        ("py:my_captioner:absent", Exit.MISSING),
        ("py:absent", Exit.USAGE),
        ("llava", Exit.USAGE),
    ):
        with pytest.raises(PogdiffError) as caught:
            load_captioner(spec, OURS)
        assert caught.value.exit_code == code


def test_names_that_are_no_list_of_names_are_refused_with_their_remedy(project: TinyProject) -> None:
    assert project("caption").status == 0
    names = project.root / "artifacts" / "names.yaml"
    names.write_text("Ada Love", encoding="utf-8")
    outcome = project("caption")
    assert outcome.status == Exit.DATA, outcome.err
    assert "names.yaml" in outcome.err
    assert "doctor --repair" in outcome.err
    assert names.read_text(encoding="utf-8") == "Ada Love"
