"""The noise recipes damage every text they accept, and exactly as many rows as asked."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forvalue_dagster.data.recipes import NOISE_RECIPES, corrupt_responses, noise_recipe

SENTENCE = "The capital of France is Paris.\nIt lies on the river Seine, in the north."
DONOR = "Here are four steps to boil an egg: heat the water, add the egg and wait."

# Any unicode text, and texts of several words between wild white space.
WILD_TEXT = st.text() | st.lists(
    st.text(min_size=1, max_size=4) | st.sampled_from([" ", "\n\n", "\u2003", "\u2028", "\x1f"]),
    max_size=40,
).map(" ".join)
SEEDS = st.integers(0, 2**32)

# When the documentation says a recipe works; in all other cases it must raise ValueError.
WORKS = {
    "answer_swap": lambda response, donor: bool(donor) and donor != response,
    "span_deletion": lambda response, donor: len(response) >= 2,
    "span_insertion": lambda response, donor: bool(response) and bool(donor),
    "word_shuffle": lambda response, donor: len(set(response)) >= 2,
}


def apply(name: str, response: str, donor: str, seed: int) -> str:
    return NOISE_RECIPES[name](response, donor, np.random.default_rng(seed))


def test_the_four_recipes_are_registered():
    assert set(WORKS) <= set(NOISE_RECIPES)


@pytest.mark.parametrize("name", sorted(NOISE_RECIPES))
@given(response=WILD_TEXT, donor=WILD_TEXT, seed=SEEDS)
def test_any_recipe_changes_the_words_of_any_text_or_refuses(name, response, donor, seed):
    works = WORKS.get(name)
    try:
        text = apply(name, response, donor, seed)
    except ValueError:
        assert works is None or not works(response.split(), donor.split())
        return
    assert works is None or works(response.split(), donor.split())
    assert text.strip()
    assert text.split() != response.split()
    assert text == apply(name, response, donor, seed)


@pytest.mark.parametrize("name", sorted(NOISE_RECIPES))
def test_every_recipe_accepts_ordinary_texts(name):
    for seed in range(50):
        assert apply(name, SENTENCE, DONOR, seed) not in ("", SENTENCE)


@pytest.mark.parametrize("name", ["span_deletion", "span_insertion", "word_shuffle"])
def test_random_recipes_depend_on_the_generator(name):
    assert len({apply(name, SENTENCE, DONOR, seed) for seed in range(20)}) > 10


def test_answer_swap_returns_the_donor():
    assert apply("answer_swap", SENTENCE, DONOR, 0) == DONOR


@given(size=st.integers(2, 80), seed=SEEDS)
def test_span_deletion_keeps_half_to_two_thirds_of_the_words_in_order(size, seed):
    words = [f"w{index}" for index in range(size)]
    kept = apply("span_deletion", " ".join(words), "", seed).split()
    deleted = size - len(kept)
    assert max(1, 0.3 * size - 0.5) <= deleted <= max(1, 0.5 * size + 0.5)
    assert kept == [word for word in words if word in set(kept)]
    if size >= 3:
        assert (kept[0], kept[-1]) == (words[0], words[-1])


@given(size=st.integers(1, 60), donor_size=st.integers(1, 60), seed=SEEDS)
def test_span_insertion_puts_one_span_of_the_donor_inside(size, donor_size, seed):
    words = [f"w{index}" for index in range(size)]
    donor = [f"d{index}" for index in range(donor_size)]
    text = apply("span_insertion", " ".join(words), " ".join(donor), seed).split()
    places = [place for place, word in enumerate(text) if word.startswith("d")]
    span = [text[place] for place in places]
    start = donor.index(span[0])
    assert span == donor[start : start + len(span)]
    assert places == list(range(places[0], places[0] + len(span)))
    assert len(span) == min(donor_size, max(3, size // 2))
    assert [word for word in text if word.startswith("w")] == words
    assert text[0] == "w0"
    if size >= 2:
        assert text[-1] == words[-1]


@given(response=WILD_TEXT.filter(lambda text: len(set(text.split())) > 1), seed=SEEDS)
def test_word_shuffle_keeps_the_words_and_the_white_space(response, seed):
    text = apply("word_shuffle", response, "", seed)
    assert Counter(text.split()) == Counter(response.split())
    assert Counter(text) == Counter(response)
    assert len(text) - len(text.lstrip()) == len(response) - len(response.lstrip())


def test_a_new_recipe_is_found_under_its_name_once():
    @noise_recipe("only_in_this_test")
    def shout(response: str, donor: str, rng: np.random.Generator) -> str:
        return response.upper()

    try:
        damaged = corrupt_responses(["a b", "c d"], 1.0, 0, recipes=["only_in_this_test"])
        assert damaged == [("A B", "only_in_this_test"), ("C D", "only_in_this_test")]
        with pytest.raises(ValueError, match="already registered"):
            noise_recipe("only_in_this_test")(shout)
    finally:
        del NOISE_RECIPES["only_in_this_test"]


RESPONSES = [f"Row {index} says that the answer is {index * index}." for index in range(41)]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.45, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 9, 41])
def test_the_share_of_damaged_rows_is_exact(rows, share):
    responses = RESPONSES[:rows]
    damaged = corrupt_responses(responses, share, seed=3)
    assert len(damaged) == rows
    assert sum(recipe is not None for _, recipe in damaged) == round(share * rows)
    for (text, recipe), response in zip(damaged, responses, strict=True):
        assert (text == response) == (recipe is None)


def test_recipes_are_balanced():
    counts = Counter(recipe for _, recipe in corrupt_responses(RESPONSES, 1.0, seed=0))
    assert set(counts) == set(NOISE_RECIPES)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_damage_depends_on_the_seed_only():
    assert corrupt_responses(RESPONSES, 0.5, seed=7) == corrupt_responses(RESPONSES, 0.5, seed=7)
    assert corrupt_responses(RESPONSES, 0.5, seed=7) != corrupt_responses(RESPONSES, 0.5, seed=8)


def test_only_the_named_recipes_are_used():
    damaged = corrupt_responses(RESPONSES, 0.5, seed=0, recipes=["word_shuffle", "answer_swap"])
    assert {recipe for _, recipe in damaged} == {None, "word_shuffle", "answer_swap"}


def test_donors_come_from_other_groups_and_differ_from_the_response():
    responses = ["one one", "one one", "two two", "three three"]
    groups = ["a", "b", "b", "c"]
    for seed in range(30):
        texts = [
            text
            for text, _ in corrupt_responses(
                responses, 1.0, seed, recipes=["answer_swap"], groups=groups
            )
        ]
        assert texts[0] in ("two two", "three three")
        assert texts[1] == "three three"
        assert texts[2] in ("one one", "three three")
        assert texts[3] in ("one one", "two two")


def test_a_row_takes_the_next_recipe_that_can_change_it():
    damaged = corrupt_responses(["Yes", "No"], 1.0, seed=0, recipes=["word_shuffle", "answer_swap"])
    assert damaged == [("No", "answer_swap"), ("Yes", "answer_swap")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.5}, "share must be"),
        ({"share": -0.1}, "share must be"),
        ({"share": float("nan")}, "share must be"),
        ({"recipes": ["typo"]}, "typo"),
        ({"recipes": []}, "no such noise recipes"),
        ({"groups": ["a"]}, "1 groups for 2 responses"),
        ({"recipes": ["word_shuffle"]}, "can change a response"),
    ],
)
def test_impossible_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt_responses(**{"responses": ["Yes", "No"], "share": 1.0, "seed": 0} | arguments)
