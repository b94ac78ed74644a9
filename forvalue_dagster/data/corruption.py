"""Damage rows on purpose: a known share of a training set, or copies of every trusted row."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import polars as pl

from forvalue_dagster.data.image_parts import is_image
from forvalue_dagster.data.image_recipes import IMAGE_RECIPES, Images
from forvalue_dagster.data.images import image_digest
from forvalue_dagster.data.recipes import NOISE_RECIPES, SAME_QUESTION, InapplicableRecipeError
from forvalue_dagster.data.rows import Message, message_images, message_text


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
    names = _known(recipes, NOISE_RECIPES)
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
        # Without a donor, recipes that need none still work; the others raise on an empty one.
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


def corrupted_copies(
    rows: pl.DataFrame,
    recipes: Sequence[str] | None = None,
    seed: int = 0,
    per_row: int | None = None,
) -> pl.DataFrame:
    """Copy every row, each copy with its last response, or its images, damaged by another recipe.

    A copy depends on its row's content, the recipe and the seed; its donor also on the other
    rows. Where a recipe cannot change a row that copy is left out.

    Args:
        rows: canonical rows; those with a `problem` or without a response have no copies.
        recipes: names, or None for all registered ones that are meant for the row.
        seed: seed of the damage.
        per_row: copies of each row, by recipes drawn for it; None for all recipes.

    Returns:
        Canonical rows, with `copy_of` (the index of the row in `rows`) and `recipe`.

    Raises:
        ValueError: if a recipe is unknown.
    """
    named = None if recipes is None else _known(recipes, NOISE_RECIPES | IMAGE_RECIPES)
    donors = _Donors(rows)
    copies: list[tuple[int, str, str, Images | None]] = []
    for row in donors.rows:
        made = 0
        own = row.recipes if named is None else named
        for name in _generator(seed, "order", row.sample_id).permutation(own).tolist():
            if made == per_row:
                break
            rng = _generator(seed, name, row.sample_id)
            try:
                messages, images = _damaged(row, donors, name, rng)
            except InapplicableRecipeError:
                continue
            copies.append((row.index, name, messages, images))
            made += 1
    table = pl.DataFrame(
        copies,
        schema={
            "copy_of": pl.Int64,
            "recipe": pl.String,
            "messages": pl.String,
            "images": pl.List(pl.Binary),
        },
        orient="row",
    )
    return rows[table["copy_of"].to_list()].drop("messages", "images").hstack(table)


@dataclass(frozen=True)
class _Row:
    """A row that can be damaged: its place, its conversation, and the answering turn."""

    index: int
    sample_id: str
    conversation: list[Message]
    turn: int
    images: Images | None

    @property
    def response(self) -> str:
        return str(self.conversation[self.turn]["content"])

    @property
    def question(self) -> str:
        return "\n".join(message_text(message) for message in self.conversation[: self.turn])

    @property
    def recipes(self) -> list[str]:
        """The recipes for it: a plain text has no images, and few questions occur twice."""
        plain = [name for name in NOISE_RECIPES if name != SAME_QUESTION]
        return [*plain, SAME_QUESTION, *IMAGE_RECIPES] if self.images else plain


class _Donors:
    """The rows of a table, as donors for each other."""

    def __init__(self, rows: pl.DataFrame) -> None:
        columns = rows.select("sample_id", "messages", "images", "problem").iter_rows()
        self.rows: list[_Row] = []
        for index, (sample_id, messages, images, problem) in enumerate(columns):
            conversation = [] if problem else json.loads(messages)
            if (turn := _last_response(conversation)) is not None:
                self.rows.append(_Row(index, sample_id, conversation, turn, images))
        self._responses = sorted({row.response for row in self.rows})
        self._answers: dict[str, set[str]] = {}
        self._images: dict[int, list[Images]] = {}
        for row in self.rows:
            self._answers.setdefault(row.question, set()).add(row.response)
            if row.images and None not in row.images:
                self._images.setdefault(len(row.images), []).append(row.images)

    def response(self, row: _Row, name: str, rng: np.random.Generator) -> str:
        """Draw another response, or another answer to the same question; "" if there is none."""
        pool = sorted(self._answers[row.question]) if name == SAME_QUESTION else self._responses
        others = [text for text in pool if text != row.response]
        return others[int(rng.integers(len(others)))] if others else ""

    def images(self, row: _Row, rng: np.random.Generator) -> Images:
        """Draw other images, as many as the row's; none if there are none."""
        pool = self._images.get(len(row.images or ()), [])
        others = [images for images in pool if images != row.images]
        return others[int(rng.integers(len(others)))] if others else []


def _damaged(
    row: _Row, donors: _Donors, name: str, rng: np.random.Generator
) -> tuple[str, Images | None]:
    """Return (messages, images) of a damaged copy.

    Raises:
        InapplicableRecipeError: if the recipe cannot change the row.
    """
    conversation = [dict(message) for message in row.conversation]
    images = row.images
    if name in IMAGE_RECIPES:
        images = IMAGE_RECIPES[name](images or [], donors.images(row, rng), rng)
        names = iter(None if data is None else image_digest(data) for data in images)
        for message in conversation:
            if message_images(message):
                message["content"] = [
                    part | {"image": next(names)} if is_image(part) else part
                    for part in message["content"]
                ]
    else:
        donor = donors.response(row, name, rng)
        conversation[row.turn]["content"] = NOISE_RECIPES[name](row.response, donor, rng)
    return json.dumps(conversation, ensure_ascii=False), images


def _generator(seed: int, purpose: str, sample_id: str) -> np.random.Generator:
    key = sha256(f"{seed}\n{purpose}\n{sample_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key[:8], "little"))


def _last_response(conversation: Sequence[Message]) -> int | None:
    """Return the index of the last assistant turn with text that is scored."""
    spoken = [
        index
        for index, message in enumerate(conversation)
        if message["role"] == "assistant"
        and message["content"].strip()
        and message.get("train", True)
    ]
    return spoken[-1] if spoken else None


def _known(recipes: Sequence[str] | None, registered: Collection[str]) -> tuple[str, ...]:
    plain = tuple(name for name in NOISE_RECIPES if name != SAME_QUESTION)
    names = plain if recipes is None else tuple(recipes)
    unknown = sorted(set(names) - set(registered))
    if unknown or not names:
        raise ValueError(f"no such noise recipes: {unknown}; known: {sorted(registered)}")
    return names
