"""The noise recipes damage every text they accept, and exactly as many rows as asked."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forvalue_dagster.data.corruption import corrupt_responses
from forvalue_dagster.data.recipes import NOISE_RECIPES, noise_recipe

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
    "truncation": lambda response, donor: len(response) >= 2,
    "repetition": lambda response, donor: bool(response),
    "character_noise": lambda response, donor: any(len(word) >= 2 for word in response),
    "refusal": lambda response, donor: True,
    "answer_flip": lambda response, donor: bool(donor) and donor != response,
}


def apply(name: str, response: str, donor: str, seed: int) -> str:
    return NOISE_RECIPES[name](response, donor, np.random.default_rng(seed))


def test_the_recipes_are_registered():
    assert set(WORKS) == set(NOISE_RECIPES)


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


@pytest.mark.parametrize(
    "name", ["span_deletion", "word_shuffle", "character_noise", "span_insertion"]
)
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


@given(size=st.integers(2, 60), seed=SEEDS)
def test_truncation_keeps_the_beginning(size, seed):
    words = [f"w{index}" for index in range(size)]
    kept = apply("truncation", " ".join(words), "", seed).split()
    assert kept == words[: len(kept)]
    assert 1 <= len(kept) <= max(1, 0.6 * size + 0.5)


@given(size=st.integers(1, 60), seed=SEEDS)
def test_repetition_loops_one_span(size, seed):
    words = [f"w{index}" for index in range(size)]
    text = apply("repetition", " ".join(words), "", seed).split()
    counts = Counter(text)
    looped = [word for word in words if counts[word] > 1]
    assert list(counts) == words
    assert 1 <= len(looped) <= 8
    assert {counts[word] for word in looped} == {(len(text) - size) // len(looped) + 1}
    assert len(text) >= size + 2 * len(looped)


@given(size=st.integers(1, 60), seed=SEEDS)
def test_character_noise_damages_a_fifth_of_the_words(size, seed):
    words = [f"word{index}" for index in range(size)]
    text = apply("character_noise", " ".join(words), "", seed).split()
    changed = [word for word, other in zip(words, text, strict=True) if word != other]
    assert len(changed) == max(1, round(size / 5))


def test_a_refusal_is_another_one_than_the_response():
    told = {apply("refusal", SENTENCE, DONOR, seed) for seed in range(50)}
    assert len(told) > 3
    assert all(apply("refusal", text, DONOR, seed) != text for text in told for seed in range(20))
