"""Intent: flag over environment over file over default, and a refusal that says what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.config import Config, dotted
from pogdiff_cli.project.loading import load_config, parse_assignments
from pogdiff_cli.project.templates import find_template, template_names
from pogdiff_cli.project.yaml_reader import read_yaml


def load(tmp_path: Path, text: str, *, overrides: Any = None, environment: Any = None) -> Config:
    path = tmp_path / "pogdiff.yaml"
    path.write_text(text)
    return load_config(path, overrides=overrides, environment=environment or {})


def refusal(tmp_path: Path, text: str, *, overrides: Any = None, environment: Any = None) -> str:
    with pytest.raises(PogdiffError) as caught:
        load(tmp_path, text, overrides=overrides, environment=environment)
    assert caught.value.exit_code == Exit.USAGE
    return str(caught.value).replace(str(tmp_path), "")


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(tmp_path: Path) -> None:
    text = "train:\n  a1: 2.0\n"
    environment = {"POGDIFF_TRAIN__A1": "3.0", "UNRELATED": "4"}
    assert load(tmp_path, "").train.a1 == 1.0
    assert load(tmp_path, text).train.a1 == 2.0
    assert load(tmp_path, text, environment=environment).train.a1 == 3.0
    assert load(tmp_path, text, environment=environment, overrides={"train.a1": 5.0}).train.a1 == 5.0


def test_the_environment_of_the_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POGDIFF_TRAIN__LR_SCHEDULER", "cosine")
    monkeypatch.setenv("POGDIFF_SEED", "7")
    (tmp_path / "pogdiff.yaml").write_text("")
    config = load_config(tmp_path / "pogdiff.yaml")
    assert (config.train.lr_scheduler, config.seed) == ("cosine", 7)


@pytest.mark.parametrize("key", sorted(dotted(Config(), "", operational="with")))
def test_every_key_has_a_variable_of_its_own(tmp_path: Path, key: str) -> None:
    variable = "POGDIFF_" + key.replace(".", "__").upper()
    message = refusal(tmp_path, "", environment={variable: "{nonsense: [1]}"})
    assert message.startswith(f"{variable}: ")
    assert f"'{key}" in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: 0\ntrain:\n  learning_rat: 1e-4\n", [":3: unknown key 'train.learning_rat'", "'train.learning_rate'?"]),
        ("trian:\n  a1: 1\n", [":1: unknown key 'trian'", "Did you mean 'train'?"]),
        ("train:\n  method: pogdif\n", [":2:", "'pogdif'", "Did you mean 'pogdiff'?"]),
        ("train:\n  sampling: square\n", [":2:", "'natural'", "'repeat_factor'"]),
        ("train:\n  psi_terms: [img_sim, inv_densty]\n", [":2:", "Did you mean 'inv_density'?"]),
        ("evaluate:\n  metrics: [fid, dyno]\n", [":2:", "Did you mean 'dino'?"]),
        ("train:\n  max_train_steps: -5\n", [":2:", "greater than or equal to 1"]),
        ("train:\n  a1: .nan\n", [":2:", "finite"]),
        ("train:\n  learning_rate: small\n", [":2:", "'small'", "number"]),
        ("train:\n  a1: [1, 2]\n", [":2:", "number"]),
        ("seed: 12:30:45\n", [":1:", "'12:30:45'", "integer"]),
        ("data:\n  resolution: 33\n", [":2:", "multiple of 8"]),
        ("data:\n  few_at_most: 30\n", [":1:", "many_at_least must be larger than few_at_most"]),
        ("sample:\n  prompt: An image.\n", [":2:", "must contain {name}"]),
        ("train: 5\n", [":1:", "'train' is 5"]),
        ("- a\n- b\n", ["must hold keys and values"]),
        ("runs:\n  slow: {train.methd: vanilla}\n", [":2: unknown key 'train.methd'", "'train.method'?"]),
        ("runs:\n  slow:\n    train:\n      a1: none\n", [":3:", "'train.a1' is 'none'"]),
        ("a: 1\nb: 2\n", [":1: unknown key 'a'", ":2: unknown key 'b'"]),
    ],
)
def test_what_is_wrong_is_refused_with_its_line_and_what_was_meant(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refusal(tmp_path, text)
    assert [part for part in parts if part not in message] == []
    assert "{'" not in message.replace("{name}", "")  # no section is spelt out


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"train.a_1": 5}, ["--set train.a_1: unknown key 'train.a_1'", "'train.a1'?"]),
        ({"train.method": "cbmd"}, ["--set train.method: ", "'cbdm'?"]),
        ({"data.many_at_least": 1}, ["--set data.many_at_least: ", "larger than few_at_most"]),
        ({"seed.x": 5}, ["--set seed.x: "]),
        ({"nonsense": 5}, ["--set nonsense: unknown key 'nonsense'"]),
    ],
)
def test_a_wrong_flag_is_named_as_the_source(tmp_path: Path, overrides: dict[str, Any], parts: list[str]) -> None:
    message = refusal(tmp_path, "seed: 3\n", overrides=overrides)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("POGDIFF_TRAIN__LEARNINGRATE", "POGDIFF_TRAIN__LEARNING_RATE"),
        ("POGDIFF_SEEED", "POGDIFF_SEED"),
        ("POGDIFF_CACH", "POGDIFF_CACHE"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest(tmp_path: Path, variable: str, meant: str) -> None:
    message = refusal(tmp_path, "", environment={variable: "1"})
    assert f"The variable {variable} names no setting" in message
    assert f"Did you mean {meant}?" in message


def test_a_variable_that_is_like_no_setting_is_refused_too(tmp_path: Path) -> None:
    message = refusal(tmp_path, "", environment={"POGDIFF_XYZZY": "1"})
    assert "unset POGDIFF_XYZZY" in message


def test_every_variable_that_the_program_reads_for_other_purposes_is_let_through(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    sources = [path.read_text() for top in ("pogdiff_cli", "templates") for path in (root / top).rglob("*.py")]
    read = {name for text in sources for name in re.findall(r"[\"'](POGDIFF_[A-Z]+(?:_[A-Z]+)*)[\"']", text)}
    assert read >= {"POGDIFF_CACHE", "POGDIFF_LAUNCH_FOLDER", "POGDIFF_ASSETS"}
    assert load(tmp_path, "", environment=dict.fromkeys(read, "/somewhere")) == Config()


def test_a_section_whose_keys_are_all_commented_out_is_an_empty_one(tmp_path: Path) -> None:
    assert load(tmp_path, "train:\n  # a1: 2\nruns:\n") == Config()


def test_part_of_a_section_leaves_the_rest_of_it_alone(tmp_path: Path) -> None:
    text = "train: {a1: 2, learning_rate: 1e-3}\n"
    config = load(tmp_path, text, overrides={"train": {"a1": 3}})
    assert (config.train.a1, config.train.learning_rate) == (3.0, 1e-3)


def test_values_that_yaml_of_old_would_twist_reach_the_settings_as_meant(tmp_path: Path) -> None:
    text = "learning_rate: 1e-5, mixed_precision: no, gradient_checkpointing: No, use_ema: yes"
    config = load(tmp_path, f"train: {{{text}}}\nseed: 1_000\n")
    assert config.train.learning_rate == 1e-5
    assert config.train.mixed_precision == "no"
    assert config.train.gradient_checkpointing is False
    assert config.train.use_ema is True
    assert config.seed == 1000


def test_a_configuration_cannot_be_changed_after_it_was_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.a1 = 2.0


def test_assignments_are_read_like_the_file() -> None:
    words = [
        "train.a1=1e-5",
        "train.psi_terms=[img_sim]",
        "sample.prompt=A = {name}",
        " seed = 3",
        "train.roulette=null",
    ]
    assert parse_assignments(words) == {
        "train.a1": 1e-5,
        "train.psi_terms": ["img_sim"],
        "sample.prompt": "A = {name}",
        "seed": 3,
        "train.roulette": None,
    }


@pytest.mark.parametrize("word", ["train.a1", "=5", "train.a1=[1", "sample.prompt={name} smiles", "seed=&a 1"])
def test_an_assignment_that_cannot_be_read_is_refused_with_the_way_to_write_it(word: str) -> None:
    with pytest.raises(PogdiffError) as caught:
        parse_assignments([word])
    assert caught.value.exit_code == Exit.USAGE
    assert f"--set {word.partition('=')[0]}" in caught.value.message
    assert caught.value.hint


def keys_below(values: Any, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict) and path not in ("extractors", "runs", "evaluate.gates"):
            yield from keys_below(value, path)
        else:
            yield path


@pytest.mark.parametrize("name", template_names())
def test_a_template_validates_and_every_key_in_it_exists(name: str) -> None:
    path = find_template(name) / "pogdiff.yaml"
    config = load_config(path, environment={})
    known = set(dotted(config, "", operational="with"))
    written = set(keys_below(read_yaml(path).values))
    assert written <= known
    for settings in config.runs.values():
        assert set(settings) <= known
    specs = {spec.split(":", 1)[0] for spec in (config.index.extractor, config.evaluate.face, config.evaluate.dino)}
    assert {spec.split(":", 1)[0] for spec in config.extractors} <= specs


@pytest.mark.parametrize("name", template_names())
def test_a_template_comments_every_line_of_its_main_sections(name: str) -> None:
    text = (find_template(name) / "pogdiff.yaml").read_text()
    assert text.startswith("# pogdiff: what you want.")
    assert "Sec. 4.1" in text
    assert "Eq. 9" in text


def test_there_are_templates_and_an_unknown_one_is_refused_with_the_nearest() -> None:
    assert {"faces", "sd15"} <= set(template_names())
    with pytest.raises(PogdiffError, match="no template 'face'") as caught:
        find_template("face")
    assert "Did you mean 'faces'?" in (caught.value.hint or "")
    assert caught.value.exit_code == Exit.USAGE
