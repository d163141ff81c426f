"""Generic names: how they are given, and how they take the place of real ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pogdiff_cli.data.names import NameReplacer, assign_names, replace_names, words_of
from pogdiff_cli.errors import Exit, PogdiffError

POOL = ["Lukas", "Maria", "Kenji", "Aisha", "Rose", "Mark", "Anne-Marie", "Anne"]


def given_names(identities: list[str], **changes: object) -> dict[str, str]:
    settings: dict[str, object] = {"seed": 0, "taken": set(), "mode": "generic", "pool": POOL}
    return assign_names(identities, **{**settings, **changes})  # type: ignore[arg-type]


def test_names_depend_on_the_seed_alone() -> None:
    people = [f"s{number}" for number in range(1, 5)]
    assert given_names(people) == given_names(people)
    assert len({tuple(given_names(people, seed=seed).values()) for seed in range(6)}) > 1


def test_the_shipped_list_serves_five_hundred_people_with_single_names() -> None:
    people = [f"person {number}" for number in range(400)]
    names = assign_names(people, seed=0, taken=set(), mode="generic")
    assert len(set(names.values())) == 400
    assert not any(" " in name for name in names.values())


def test_no_generic_name_is_a_word_of_a_caption_or_of_an_identity() -> None:
    taken = words_of(["A ROSE in the garden", "mark the spot"])
    names = given_names(["Maria_Curie", "b", "c"], taken=taken)
    assert words_of(names.values()).isdisjoint({"rose", "mark", "maria", "curie", "b", "c"})


def test_single_names_never_share_a_word_with_one_another() -> None:
    for seed in range(20):
        names = list(given_names(["a1", "a2", "a3", "a4", "a5"], seed=seed).values())
        assert sum("Anne" in name for name in names) <= 1


def test_two_part_names_follow_when_the_list_is_used_up() -> None:
    people = [f"s{number}" for number in range(40)]
    names = given_names(people)
    assert len({name.casefold() for name in names.values()}) == 40
    two_part = [name for name in names.values() if len(name.split()) == 2]
    assert len(two_part) >= 40 - len(POOL)
    first_names = [name.split()[0] for name in two_part]
    assert len(set(first_names)) >= 5  # no first name is crowded


def test_too_many_people_for_the_list_is_an_error_that_says_so() -> None:
    with pytest.raises(PogdiffError, match="do not suffice") as caught:
        given_names([f"s{number}" for number in range(300)], pool=["Lukas"])
    assert caught.value.exit_code == Exit.DATA


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([f"s{n}" for n in range(30)]), unique=True, min_size=1), st.data())
def test_adding_people_renames_nobody(people: list[str], data: st.DataObject) -> None:
    before = data.draw(st.lists(st.sampled_from(people), unique=True))
    known = given_names(before)
    after = given_names(people, known=known)
    assert {who: after[who] for who in before} == known
    assert len(set(after.values())) == len(people)


def test_the_name_of_somebody_who_left_is_not_given_to_another() -> None:
    names = given_names(["new1", "new2"], known={"gone": "Lukas"}, pool=["Lukas", "Maria", "Kenji"])
    assert set(names.values()) == {"Maria", "Kenji"}


def test_keep_speaks_the_identity_and_never_merges_two() -> None:
    names = given_names(["Albert_Einstein", "s21", "Ada Byron", "Ada_Byron"], mode="keep")
    assert names == {
        "Albert_Einstein": "Albert Einstein",
        "s21": "s21",
        "Ada Byron": "Ada Byron",
        "Ada_Byron": "Ada_Byron",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Albert Einstein smiles", "Lukas smiles"),
        ("Albert Einstein's desk", "Lukas's desk"),
        ("ALBERT EINSTEIN'S DESK", "LUKAS'S DESK"),
        ("albert einstein smiles", "lukas smiles"),
        ("albert_einstein.jpg", "lukas.jpg"),
        ("photo_Albert_Einstein_01", "photo_Lukas_01"),
        ("Albert-Einstein-like hair", "Lukas-like hair"),
        ("Albert  Einstein, Albert Einstein", "Lukas, Lukas"),
        ("Albert Einsteinian", "Albert Einsteinian"),
        ("XAlbert Einsteins", "XAlbert Einsteins"),
        ("Albert, Einstein", "Albert, Lukas"),
        ("Anna Maria and Anna", "Kenji and Aisha"),
        ("ANNA", "AISHA"),
        ("Joanna", "Joanna"),
        ("s2 and s21, S21, s 21 but not s210 or xs21", "Bo and Mia, Mia, Mia but not s210 or xs21"),
        ("Zoe\u0308 waves", "Ida waves"),
        ("J. P. Morgan, JP Morgan, J. Morgan, Mr. Morgan", "Otto, Otto, Otto, Mr. Otto"),
        ("", ""),
    ],
)
def test_real_names_are_replaced_in_the_form_they_stand_in(text: str, expected: str) -> None:
    mapping = {
        "Albert_Einstein": "Lukas",
        "Anna": "Aisha",
        "Anna Maria": "Kenji",
        "s2": "Bo",
        "s21": "Mia",
        "Zoë": "Ida",
        "J.P. Morgan": "Otto",
    }
    assert replace_names(text, mapping) == expected


def test_names_are_swapped_and_not_replaced_twice() -> None:
    assert replace_names("Anna met Maria", {"Anna": "Maria", "Maria": "Anna"}) == "Maria met Anna"


def test_marks_belong_to_the_letters_of_a_name() -> None:
    replace = NameReplacer({"नरेन्द्र": "Lukas", "न": "Bo"})
    assert replace("नरेन्द्र हैं") == "Lukas हैं"


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abAB 12_-.'", max_size=30))
def test_no_real_name_survives_as_a_word_of_its_own(text: str) -> None:
    replaced = NameReplacer({"ab": "x", "b 1": "y"})(text)
    assert NameReplacer({"ab": "!", "b 1": "!"})(replaced) == replaced


def test_names_that_share_their_first_word_are_told_apart_without_looking_at_each() -> None:
    replacer = NameReplacer({f"person {number}": f"Ada {number}" for number in range(2000)})
    assert replacer("person 1999 beside person 3") == "Ada 1999 beside Ada 3"
    assert replacer("person 2000 alone") == "person 2000 alone"
    assert max(len(lengths) for lengths in replacer._lengths.values()) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Lovelace smiles", "Lukas smiles"),
        ("LOVELACE'S DESK, lovelace's desk", "LUKAS'S DESK, lukas's desk"),
        ("Miss A. Lovelace and Mr. Babbage", "Miss Lukas and Mr. Bo"),
        ("B. Lovelace", "B. Lukas"),  # initials of somebody else stay
        ("Lovelaces", "Lovelaces"),
        ("J. W. Marriott, J.W. Marriott, JW Marriott", "Otto, Otto, Otto"),
        ("John Marriott", "John Otto"),
        # a common word, and names that two people share
        ("Brown hair; Brown's brown hair", "Brown hair; Brown's brown hair"),
        ("James Brown's hair", "Kenji's hair"),
        ("Hepburn, Audrey Hepburn, Katharine Hepburn", "Hepburn, Mia, Rosa"),
        ("Johnson-Smith, Johnson, Smith", "Aisha, Johnson, Smith"),
        ("Martin Luther King Jr. beside King", "Ida. beside King"),
        ("Downey wins", "Emil wins"),
        ("Ada smiles", "Ada smiles"),  # a first name is a stranger's as well
        ("2 people, 7 hats", "2 people, 7 hats"),
    ],
)
def test_a_surname_alone_is_replaced_where_it_speaks_of_one_person(text: str, expected: str) -> None:
    mapping = {
        "Ada Lovelace": "Lukas",
        "Charles_Babbage": "Bo",
        "JW Marriott": "Otto",
        "James Brown": "Kenji",
        "Audrey Hepburn": "Mia",
        "Katharine Hepburn": "Rosa",
        "Katherine Johnson-Smith": "Aisha",
        "Martin Luther King Jr": "Ida",
        "Robert Downey Jr.": "Emil",
        "subject 7": "Uma",
        "person 2": "Eva",
    }
    assert replace_names(text, mapping) == expected


def test_a_surname_that_is_another_identity_is_that_identity() -> None:
    assert replace_names("Prince and Curie", {"Marie Curie": "Mia", "Curie": "Bo"}) == "Prince and Bo"


def test_names_that_are_kept_are_not_put_in_place_of_surnames() -> None:
    assert replace_names("Lovelace", {"Ada_Lovelace": "Ada Lovelace"}) == "Lovelace"
