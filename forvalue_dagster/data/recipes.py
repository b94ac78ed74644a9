"""Noise recipes: ways to damage the response of a finetuning row on purpose.

A recipe is a pure function of a response, the response of another row (the donor) and a random
generator. To add one, write it here under the `noise_recipe` decorator; nothing else changes.

Every recipe returns a text that has at least one word and other words (or another order of
words) than the response, or raises InapplicableRecipeError when it cannot, for instance when
asked to shuffle one word. The text depends only on its arguments and on the state of the
generator.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

Recipe = Callable[[str, str, np.random.Generator], str]

NOISE_RECIPES: dict[str, Recipe] = {}
"""The registered recipes by name, in the order of registration."""


class InapplicableRecipeError(ValueError):
    """A recipe cannot change this text."""


_WORD = re.compile(r"\S+")
_WORD_AND_SPACE = re.compile(r"\S+\s*")
_WORDS_PER_DELETED_SPAN = 3


def noise_recipe(name: str) -> Callable[[Recipe], Recipe]:
    """Make a decorator that registers a recipe.

    Args:
        name: The name under which the recipe is found in `NOISE_RECIPES`.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        ValueError: On decoration, if the name is already taken.
    """

    def register(recipe: Recipe) -> Recipe:
        if name in NOISE_RECIPES:
            raise ValueError(f"noise recipe {name!r} is already registered")
        NOISE_RECIPES[name] = recipe
        return recipe

    return register


@noise_recipe("answer_swap")
def answer_swap(response: str, donor: str, rng: np.random.Generator) -> str:
    """Replace the response by the donor.

    Args:
        response: The text to damage.
        donor: The response of another row.
        rng: Not used.

    Returns:
        The donor.

    Raises:
        InapplicableRecipeError: If the donor has no words or the same words as the response.
    """
    if not donor.split() or donor.split() == response.split():
        raise InapplicableRecipeError(
            "answer_swap needs a donor with other words than the response"
        )
    return donor


@noise_recipe("span_deletion")
def span_deletion(response: str, donor: str, rng: np.random.Generator) -> str:
    """Delete spans of words, together 30 to 50 % of the words (at least one word).

    Args:
        response: The text to damage.
        donor: Not used.
        rng: The source of randomness.

    Returns:
        The response without the spans; its first and last word stay if it has three words or more.

    Raises:
        InapplicableRecipeError: If the response has fewer than two words.
    """
    words = _WORD_AND_SPACE.findall(response)
    if len(words) < 2:
        raise InapplicableRecipeError("span_deletion needs a response of two words or more")
    deleted = max(1, round(len(words) * rng.uniform(0.3, 0.5)))
    kept = len(words) - deleted
    # A cut at either end leaves fluent text behind, so cuts go between words that stay.
    gaps = np.arange(1, kept) if kept > 1 else np.array([0])
    spans = min(len(gaps), -(-deleted // _WORDS_PER_DELETED_SPAN))
    cuts = np.sort(rng.choice(gaps, size=spans, replace=False))
    lengths = [len(part) for part in np.array_split(np.arange(deleted), spans)]
    for cut, length in zip(cuts.tolist(), lengths, strict=True):
        # Earlier spans are gone already, so a cut counted in kept words is a plain index.
        del words[cut : cut + length]
    return "".join(words)


@noise_recipe("span_insertion")
def span_insertion(response: str, donor: str, rng: np.random.Generator) -> str:
    """Insert a span of the donor's words in the middle of the response.

    Args:
        response: The text to damage.
        donor: The response of another row.
        rng: The source of randomness.

    Returns:
        The response with a span of about half its length (three words or more, if the donor has
        them) put in its middle half, or after it if it is a single word.

    Raises:
        InapplicableRecipeError: If the response or the donor has no words.
    """
    words, donor_words = _WORD_AND_SPACE.findall(response), donor.split()
    if not words or not donor_words:
        raise InapplicableRecipeError("span_insertion needs a response and a donor with words")
    length = min(len(donor_words), max(3, len(words) // 2))
    start = int(rng.integers(len(donor_words) - length + 1))
    quarter = max(1, len(words) // 4)
    place = int(rng.integers(quarter, max(quarter, len(words) - quarter) + 1))
    span = " ".join(donor_words[start : start + length])
    return "".join(words[:place]).rstrip() + f" {span} " + "".join(words[place:])


@noise_recipe("word_shuffle")
def word_shuffle(response: str, donor: str, rng: np.random.Generator) -> str:
    """Shuffle the words and leave the white space between them as it was.

    Args:
        response: The text to damage.
        donor: Not used.
        rng: The source of randomness.

    Returns:
        The same words in another order.

    Raises:
        InapplicableRecipeError: If the response does not have two different words.
    """
    words = _WORD.findall(response)
    if len(set(words)) < 2:
        raise InapplicableRecipeError("word_shuffle needs a response with two different words")
    order = [words[index] for index in rng.permutation(len(words))]
    if order == words:
        # Turning by one word changes every text but a repetition of one word.
        order = order[1:] + order[:1]
    following = iter(order)
    return _WORD.sub(lambda _: next(following), response)


def corrupt_responses(
    responses: Sequence[str],
    share: float,
    seed: int,
    recipes: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> list[tuple[str, str | None]]:
    """Damage exactly `round(share * len(responses))` responses.

    The damaged rows take the recipes in turn. A row whose turn is a recipe that cannot change it
    takes the next recipe that can.

    Args:
        responses: The responses of all rows.
        share: The share of rows to damage, from 0 to 1.
        seed: The seed of the choice of rows, donors and damage.
        recipes: The names of the recipes to use, or None for all registered ones.
        groups: The group of every row (for instance its task). If given, donors come from other
            groups, so that a swapped answer cannot be right by chance.

    Returns:
        For every row, in order, its text and the name of the recipe applied, or None.

    Raises:
        ValueError: If the share is outside 0 to 1, a recipe is unknown or none is named, the
            groups do not match the responses, or no recipe can change a chosen row.
    """
    names = tuple(NOISE_RECIPES if recipes is None else recipes)
    unknown = sorted(set(names) - set(NOISE_RECIPES))
    if unknown or not names:
        raise ValueError(f"no such noise recipes: {unknown}; known: {sorted(NOISE_RECIPES)}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share}")
    if groups is not None and len(groups) != len(responses):
        raise ValueError(f"{len(groups)} groups for {len(responses)} responses")
    rng = np.random.default_rng(seed)
    result: list[tuple[str, str | None]] = [(text, None) for text in responses]
    chosen = rng.permutation(len(responses))[: round(share * len(responses))]
    for turn, row in enumerate(chosen.tolist()):
        donors = [
            text
            for other, text in enumerate(responses)
            if text != responses[row] and (groups is None or groups[other] != groups[row])
        ]
        # Without a donor the recipes that need none still work; the others refuse an empty one.
        donor = donors[int(rng.integers(len(donors)))] if donors else ""
        result[row] = _first_that_works(names, turn, responses[row], donor, rng)
    return result


def _first_that_works(
    names: Sequence[str], turn: int, response: str, donor: str, rng: np.random.Generator
) -> tuple[str, str]:
    for step in range(len(names)):
        name = names[(turn + step) % len(names)]
        try:
            return NOISE_RECIPES[name](response, donor, rng), name
        except InapplicableRecipeError:
            continue
    raise InapplicableRecipeError(
        f"none of the recipes {list(names)} can change a response of {len(response)} characters"
    )
