"""Noise recipes: ways to damage the response of a finetuning row on purpose.

A recipe is a pure function of a response, the response of another row (the donor) and a random
generator. To add one, write it here under the `noise_recipe` decorator; nothing else changes.

Every recipe returns a text that has at least one word and other words (or another order of
words) than the response, or raises InapplicableRecipeError when it cannot, for instance when
asked to shuffle one word. The text depends only on its arguments and on the state of the
generator.
"""

import re
from collections.abc import Callable

import numpy as np

Recipe = Callable[[str, str, np.random.Generator], str]

NOISE_RECIPES: dict[str, Recipe] = {}
"""The registered recipes by name, in the order of registration."""

SAME_QUESTION = "answer_flip"
"""The recipe whose donors answer the same question; asked for by default of rows with images."""


class InapplicableRecipeError(ValueError):
    """A recipe cannot change this text."""


_WORD = re.compile(r"\S+")
_WORD_AND_SPACE = re.compile(r"\S+\s*")
_WORDS_PER_DELETED_SPAN = 3
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I am not able to answer this question.",
    "I cannot assist with that request.",
    "Sorry, I don't have enough information to answer that.",
    "Unfortunately, I am unable to provide a response to this request.",
    "I'm not sure about this. Please consult a professional.",
)


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
        # Earlier spans are already removed, so a cut counted in kept words is a plain index.
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


@noise_recipe("truncation")
def truncation(response: str, donor: str, rng: np.random.Generator) -> str:
    """Cut the response off after 20 to 60 % of its words, as an interrupted answer ends.

    Args:
        response: The text to damage.
        donor: Not used.
        rng: The source of randomness.

    Returns:
        The first words of the response, at least one.

    Raises:
        InapplicableRecipeError: If the response has fewer than two words.
    """
    words = _WORD_AND_SPACE.findall(response)
    if len(words) < 2:
        raise InapplicableRecipeError("truncation needs a response of two words or more")
    kept = min(len(words) - 1, max(1, round(len(words) * rng.uniform(0.2, 0.6))))
    return "".join(words[:kept]).rstrip()


@noise_recipe("repetition")
def repetition(response: str, donor: str, rng: np.random.Generator) -> str:
    """Repeat a span of words in place, as a degenerate generator does.

    Args:
        response: The text to damage.
        donor: Not used.
        rng: The source of randomness.

    Returns:
        The response in which a span of up to eight words stands three times or more, until it
        is half as long again.

    Raises:
        InapplicableRecipeError: If the response has no words.
    """
    words = _WORD_AND_SPACE.findall(response)
    if not words:
        raise InapplicableRecipeError("repetition needs a response with words")
    span = min(len(words), int(rng.integers(3, 9)))
    start = int(rng.integers(len(words) - span + 1))
    looped = [word if word != word.rstrip() else f"{word} " for word in words[start : start + span]]
    times = max(2, round(len(words) / (2 * span)))
    return "".join(words[:start] + looped * times + words[start:])


@noise_recipe("character_noise")
def character_noise(response: str, donor: str, rng: np.random.Generator) -> str:
    """Damage a fifth of the words by one character each, as bad scans and typing do.

    Args:
        response: The text to damage.
        donor: Not used.
        rng: The source of randomness.

    Returns:
        The response with characters replaced, deleted, doubled or swapped inside words.

    Raises:
        InapplicableRecipeError: If no word has two characters or more.
    """
    words = _WORD_AND_SPACE.findall(response)
    long = [place for place, word in enumerate(words) if len(word.rstrip()) > 1]
    if not long:
        raise InapplicableRecipeError("character_noise needs a word of two characters or more")
    damaged = max(1, round(len(words) / 5))
    for place in rng.permutation(long)[:damaged].tolist():
        words[place] = _with_typo(words[place], rng)
    return "".join(words)


def _with_typo(word: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(len(word.rstrip())))
    replaced = _LETTERS[(_LETTERS.find(word[at]) + int(rng.integers(1, 26))) % 26]
    options = [
        word[:at] + replaced + word[at + 1 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
    ]
    return options[int(rng.integers(len(options)))]


@noise_recipe("refusal")
def refusal(response: str, donor: str, rng: np.random.Generator) -> str:
    """Replace the response by a boilerplate refusal.

    Args:
        response: The text to damage.
        donor: Not used.
        rng: The source of randomness.

    Returns:
        One of a few refusals, different from the response.
    """
    others = [text for text in _REFUSALS if text.split() != response.split()]
    return others[int(rng.integers(len(others)))]


@noise_recipe(SAME_QUESTION)
def answer_flip(response: str, donor: str, rng: np.random.Generator) -> str:
    """Replace a short answer by another answer to the same question, as a wrong label does.

    Args:
        response: The text to damage.
        donor: The response of another row with the same question.
        rng: Not used.

    Returns:
        The donor.

    Raises:
        InapplicableRecipeError: If no other row answers the same question differently.
    """
    if not donor.split() or donor.split() == response.split():
        raise InapplicableRecipeError("answer_flip needs another answer to the same question")
    return donor
