"""The paper's sets, chosen from folders that are named as the published data sets are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import Command

from pogdiff_cli.data.recipes import Group, Recipe, choose, find_images, spoken
from pogdiff_cli.data.records import read_records
from pogdiff_cli.errors import Exit, PogdiffError
from pogdiff_cli.project.layout import open_project
from pogdiff_cli.project.templates import find_template

#: Sec. 4.1 and App. F: images, identities, steps, batch, accumulation, generated images of an identity (all-shot).
PRINTED = {
    "agedb-it2i-s": (32, 2, 6000, 8, 1, 100),
    "agedb-it2i-m": (100, 10, 6000, 8, 1, 100),
    "agedb-it2i-l": (976, 223, 12000, 8, 4, 20),
    "digiface-it2i-l": (985, 179, 12000, 8, 4, 20),
    "vggface-it2i-s": (32, 2, 6000, 8, 1, 100),  # images and identities alone; the rest is AgeDB-IT2I-S's
}
NAMES = ("JWMarriott", "AlbertEinstein", "EdwardGRobinson", "LuiseRainer", "J.P.Morgan", "SteveMcQueen")


def published(folder: Path, template: str, *, many: int, few: int) -> Path:
    """Empty files under the names of the data set: ``many`` people with 36 images, ``few`` with 5."""
    counts = [36] * many + [5] * few
    folder.mkdir()
    number = 0
    for person, count in enumerate(counts):
        name = NAMES[person] if person < len(NAMES) else f"Person{chr(65 + person // 26)}{chr(97 + person % 26)}"
        for image in range(count):
            if template.startswith("agedb"):
                path = folder / f"{number}_{name}_{20 + image}_{'mf'[person % 2]}.jpg"
            elif template.startswith("digiface"):
                path = folder / str(person) / f"{image}.png"
            else:
                path = folder / "train" / f"n{person:06d}" / f"{image:04d}_01.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            number += 1
    (folder / "readme.txt").write_text("not a picture")
    return folder


@pytest.mark.parametrize("template", list(PRINTED))
def test_a_set_has_the_counts_and_settings_that_the_paper_prints(
    template: str, tmp_path: Path, pogdiff: Command
) -> None:
    images, identities, steps, batch, accumulation, generated = PRINTED[template]
    folder = published(tmp_path / "set", template, many=24, few=210)
    made = pogdiff("init", tmp_path / "p", "--template", template, "--images", folder, "--json")
    assert made.status == 0, made.err
    project = open_project(tmp_path / "p")
    assert project.images == folder
    records = read_records(project.images, project.metadata)
    assert json.loads(made.out)["images"] == len(records)
    train, everything = records.train.counts(), records.counts()
    assert (int(train.sum()), len(records.identity_names)) == (images, identities)
    assert {30, 2} <= set(train.tolist()) <= {30, 2, 26, 28, 13}
    assert all(total > count for count, total in zip(train, everything, strict=True))
    between = sum(count not in (30, 2) for count in train.tolist())
    possible = {28 * heads + 2 * identities for heads in range(identities + 1)}  # with 30 and 2 alone
    assert between == (0 if images in possible else 1)
    config = project.config
    assert config.train.max_train_steps == steps
    assert (config.train.train_batch_size, config.train.gradient_accumulation_steps) == (batch, accumulation)
    assert config.train.learning_rate == 1e-5
    assert config.sample.images_per_identity == generated
    assert (config.sample.num_inference_steps, config.sample.eta) == (50, 0.0)
    assert config.sample.prompt == "An image of {name}."
    assert config.evaluate.true_set == "exact"
    assert list(config.runs) == ["vanilla", "cbdm", "t2h", "pogdiff"]
    assert "does not print" in (tmp_path / "p" / "README.md").read_text()
    assert f"{images}, {identities}" in (find_template(template) / "README.md").read_text()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("JWMarriott", "JW Marriott"),
        ("AlbertEinstein", "Albert Einstein"),
        ("EdwardGRobinson", "Edward G Robinson"),
        ("SteveMcQueen", "Steve McQueen"),
        ("ShirleyMacLaine", "Shirley MacLaine"),
        ("RobertDeNiro", "Robert De Niro"),
        ("J.P.Morgan", "J. P. Morgan"),
        ("Cher", "Cher"),
        ("ÉdithPiaf", "Édith Piaf"),
        ("Catherine_Deneuve", "Catherine Deneuve"),
        ("Jean-PaulBelmondo", "Jean-Paul Belmondo"),
        ("PeterO'Toole", "Peter O'Toole"),
        ("JohnPaulII", "John Paul II"),
        ("TomásMilián", "Tomás Milián"),
        ("T.S.Eliot", "T. S. Eliot"),
    ],
)
def test_a_name_written_in_one_word_is_spoken_in_several(written: str, said: str) -> None:
    assert spoken(written) == said


def test_names_ages_and_genders_of_agedb_become_columns(tmp_path: Path, pogdiff: Command) -> None:
    folder = tmp_path / "AgeDB"
    folder.mkdir()
    for number in range(31):
        (folder / f"{number}_JWMarriott_{30 + number}_m.jpg").touch()
    for number in range(3):
        (folder / f"{90 + number}_LuiseRainer_{20 + number}_f.jpg").touch()
    (folder / "cover.jpg").touch()  # none of its pictures
    made = pogdiff("init", tmp_path / "p", "--template", "agedb-it2i-s", "--images", folder)
    assert made.status == 0, made.err
    lines = [json.loads(line) for line in (tmp_path / "p" / "data" / "metadata.jsonl").read_text().splitlines()]
    assert Counter((line["identity"], line["split"]) for line in lines) == {
        ("JW Marriott", "train"): 30,
        ("JW Marriott", "heldout"): 1,
        ("Luise Rainer", "train"): 2,
        ("Luise Rainer", "heldout"): 1,
    }
    row = next(line for line in lines if line["file_name"] == "12_JWMarriott_42_m.jpg")
    assert (row["age"], row["gender"]) == ("42", "man")


def test_odd_file_names_of_agedb_are_read_and_others_are_none_of_its_images(tmp_path: Path) -> None:
    recipe = Recipe(source="AgeDB", layout="agedb", identity="{name}", groups=())
    odd = {
        "12_JWMarriott_60_m.jpg": "JW Marriott",
        "0_Jean-PaulBelmondo_7_m.JPG": "Jean-Paul Belmondo",
        "16487_LuiseRainer_101_f.jpeg": "Luise Rainer",
        "3_JohnPaulII_84_m.jpg": "John Paul II",
        "44_Sade_2_30_f.jpg": "Sade 2",
        "part 2/5_PeterO'Toole_35_m.png": "Peter O'Toole",
    }
    others = ("12_JWMarriott_60_m (1).jpg", "JWMarriott_60_m.jpg", "12_JWMarriott_60_x.jpg", "12__60_m.jpg", "a.jpg")
    for name in (*odd, *others, ".hidden/1_NoOne_5_m.jpg", "12_JWMarriott_61_m.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path, recipe)
    assert found.images == {who: [name] for name, who in odd.items()}
    assert found.other == len(others)


SMALL = Recipe(source="X", layout="folders", identity="{folder}", groups=(Group(identities=2, images=3),))
PEOPLE = {f"p{n}": [f"p{n}/{i}.png" for i in range(4)] for n in range(12)}


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_the_files() -> None:
    shuffled = {who: names[::-1] for who, names in reversed(PEOPLE.items())}
    assert choose(PEOPLE, SMALL, seed=3) == choose(shuffled, SMALL, seed=3)
    drawn = {frozenset(line.identity for line in choose(PEOPLE, SMALL, seed=seed)) for seed in range(20)}
    assert len(drawn) > 10
    assert all(len(people) == 2 for people in drawn)


def test_another_seed_is_typed_with_init(tmp_path: Path, pogdiff: Command) -> None:
    folder = published(tmp_path / "set", "digiface", many=30, few=30)
    chosen = []
    for seed in ("0", "0", "1"):
        root = tmp_path / f"p{len(chosen)}"
        made = pogdiff("init", root, "--template", "vggface-it2i-s", "--images", folder, "--seed", seed)
        assert made.status == 0, made.err
        chosen.append((root / "data" / "metadata.jsonl").read_bytes())
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_data_set_that_is_too_small_or_another_one_is_refused_and_leaves_nothing(
    tmp_path: Path, pogdiff: Command
) -> None:
    folder = published(tmp_path / "set", "agedb", many=1, few=3)
    for template, said in (("agedb-it2i-m", "2 further identities with more than 30"), ("digiface-it2i-l", "DigiFace")):
        refused = pogdiff("init", tmp_path / "p", "--template", template, "--images", folder)
        assert refused.status == Exit.DATA
        assert said in " ".join(refused.err.split())
        assert not (tmp_path / "p").exists()
    alone = pogdiff("init", tmp_path / "p", "--template", "agedb-it2i-s")
    assert alone.status == Exit.USAGE
    assert "--template agedb-it2i-s --images DIR" in alone.err
    seeded = pogdiff("init", tmp_path / "p", "--template", "sd15", "--seed", "1")
    assert seeded.status == Exit.USAGE
    assert not (tmp_path / "p").exists()


def test_two_folders_of_one_name_are_not_taken_for_one_person(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "n000001").mkdir(parents=True)
        (tmp_path / part / "n000001" / "0001_01.jpg").touch()
    with pytest.raises(PogdiffError, match="two folders of the name n000001") as caught:
        find_images(tmp_path, SMALL)
    assert caught.value.exit_code == Exit.DATA
